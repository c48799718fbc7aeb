"""The base of every error that is for whoever runs, calls or configures this software, and no bug of ours."""


class TidegateError(Exception):
    """Something outside of this program is not as it needs to be: a setting, a file, a server, what was asked for.

    `str()` says all there is to say, in one line, or in one for each problem of a setting or a catalog: what failed,
    what was expected, what came and what to do. It holds no secret. So whoever ends a process, prints a line or logs a
    failure catches this class and shows no traceback. What is not one of these is a bug, and keeps its traceback.
    """


def one_line(foreign: object) -> str:
    """Return what a library, a server or the system says, without line breaks, for the text of an error of ours."""
    return " ".join(str(foreign).split())
