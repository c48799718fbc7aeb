"""`python -m serving` is `tidegate serve`."""

import sys

from serving.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["serve"]
    main()
