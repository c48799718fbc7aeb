"""`python -m serving.demo`."""

from serving.demo.app import main

if __name__ == "__main__":
    main()
