"""`python -m tidegate` is the command `tidegate`."""

from tidegate.serving.cli.main import main

if __name__ == "__main__":
    main()
