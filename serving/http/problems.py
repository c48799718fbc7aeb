"""Errors as RFC 9457 has them: `application/problem+json`, one shape for every one."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

MEDIA: Final = "application/problem+json"
URN: Final = "urn:tidegate:problem:"
RETRY_AFTER_S: Final = 1


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong with what was sent: where, and what. `line` is that of a catalog's text."""

    detail: str
    pointer: str = ""
    reason: str = ""
    line: int = 0


class ProblemBody(msgspec.Struct, frozen=True, rename={"kind": "type"}):
    """What went wrong, for programs by `type`, for people in `detail`."""

    kind: Annotated[str, Meta(description="urn:tidegate:problem:NAME, one per kind of error.")]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: str
    errors: list[Fault] | UnsetType = UNSET
    decision: Any = UNSET
    version: int | UnsetType = UNSET


class Problem(Exception):
    """Ends a request with an error: `kind` is the last part of its type."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Fault] = (),
        decision: Any = UNSET,
        version: int | UnsetType = UNSET,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.headers = dict(headers or {})
        self._errors, self._decision, self._version = list(errors), decision, version

    def body(self) -> bytes:
        title = HTTPStatus(self.status).phrase
        errors = self._errors or UNSET
        whole = ProblemBody(
            URN + self.kind, title, self.status, self.detail, errors, self._decision, self._version
        )
        return msgspec.json.encode(whole)


def unavailable(detail: str) -> Problem:
    """Return a problem of status 503: something outside fails, and a retry may succeed."""
    return Problem(503, "unavailable", detail, headers={"retry-after": str(RETRY_AFTER_S)})


def not_found(detail: str) -> Problem:
    return Problem(404, "not-found", detail)


def unfit(detail: str, errors: Sequence[Fault] = ()) -> Problem:
    """Return a problem of status 422: the request is readable but not usable."""
    return Problem(422, "unfit", detail, errors=errors)
