"""The provider's answers when it refuses."""

from typing import Final

INVALID_BODY: Final = "INVALID_REQUEST_BODY"
INVALID_PARAMETERS: Final = "INVALID_REQUEST_PARAMETERS"
INVALID_QUERY: Final = "INVALID_QUERY_PARAMS"


class Problem(Exception):
    """A refusal with the provider's status, code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message
        super().__init__(f"{status} {code}: {message}")


def missing(what: str, id: str) -> Problem:
    return Problem(404, "NOT_FOUND", f"{what} {id!r} does not exist")


def malformed(message: str) -> Problem:
    """Return the problem of a body that is not JSON, or not of the declared shape."""
    return Problem(422, INVALID_BODY, message)


def wrong_query(message: str, status: int = 422) -> Problem:
    return Problem(status, INVALID_QUERY, message)
