"""`make demo`: a made-up AI product with everything that Tidegate has around it, on this machine."""
