"""`python -m examples.demo`."""

from examples.demo.app import main

if __name__ == "__main__":
    main()
