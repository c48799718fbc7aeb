"""The commands of `tidegate` that have modules of their own; serving/cli/main.py puts them together."""
