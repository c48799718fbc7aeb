"""What may be chosen about the tests, by environment variables that are in CONTRIBUTING.md."""

import os

PREFIX = "TEST_"


def hide_variables() -> None:
    """Take all variables of ours out of the environment: to the product they would be settings that it does not know.

    They are kept under another name, which workers of this run inherit.
    """
    for name in [name for name in os.environ if name.startswith("TIDEGATE_")]:
        os.environ[PREFIX + name] = os.environ.pop(name)


def option(name: str, default: str = "") -> str:
    """Return what was chosen by the variable `name`."""
    return os.environ.get(PREFIX + name, default)
