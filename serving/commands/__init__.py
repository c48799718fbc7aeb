"""The commands of `tidegate` that have modules of their own; serving/cli.py puts them together."""
