"""Routes: what may be asked of the service, each with its types, its scope and its answers.

The table of routes is all there is: the application serves it and the OpenAPI document is made from it, so neither
can say what the other does not. Paths are matched as they were sent, so that %2F in a customer's name stays in it.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar
from urllib.parse import unquote

import msgspec

from tidegate.operators.gate.access import ApiKey, Scope

JSON: Final = "application/json"

P = TypeVar("P", bound="Nothing")
Q = TypeVar("Q", bound="Nothing")
B = TypeVar("B")


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters. The base of those that there are."""


class Answer(NamedTuple):
    """What a handler gives back. Headers are names in lower case."""

    status: int
    body: bytes = b""
    media: str = JSON
    headers: Sequence[tuple[str, str]] = ()


class Stream(NamedTuple):
    """Pieces that are sent as they come, for as long as anybody listens. `close` is called once they are not."""

    pieces: AsyncIterator[bytes]
    media: str
    close: Callable[[], None]


@dataclass(slots=True)
class Call(Generic[P, Q, B]):
    """A request as a handler sees it: authenticated, read and typed. `by` is who asks, for the audit."""

    path: P
    query: Q
    body: B
    headers: Mapping[str, str]
    key: ApiKey | None

    @property
    def by(self) -> str:
        return f"{self.key.name} ({self.key.id})" if self.key else "anybody (auth=none)"


Handler = Callable[[Any, Call[Any, Any, Any]], Awaitable[Answer | Stream]]


class Success(NamedTuple):
    """An answer that is no error. `shape` is a type for JSON, None for anything else."""

    status: int
    what: str
    shape: Any = None
    media: str = JSON
    headers: Mapping[str, str] = {}


class Sent(NamedTuple):
    """A body that is taken: its media type, its shape (None is bytes, as they are) and its schema where it has none."""

    media: str
    shape: Any = None
    schema: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    `customer` says where the customer is named that a customer's key may ask about; `own` is about the key itself.
    With `appended` the parameters end before the first / or ?, behind which a proxy put the path of another request.
    """

    method: Literal["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"]
    path: str
    handler: Handler
    summary: str
    answers: Sequence[Success]
    scope: Scope | None = "read"
    customer: Literal["path", "query", "own", None] = None
    at: type[Nothing] = Nothing
    query: type[Nothing] = Nothing
    takes: Sequence[Sent] = ()
    problems: Sequence[int] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    about: str = ""
    appended: bool = False

    @property
    def name(self) -> str:
        """For metrics and the OpenAPI document: `get_customers_usage`."""
        return _name(self.method, self.path)


@cache
def _name(method: str, path: str) -> str:
    words = re.findall(r"[a-z]+", re.sub(r"\{[a-z]+\}|/v1/", "/", path))
    return "_".join((method.lower(), *words))


class Found(NamedTuple):
    route: Route
    parts: tuple[str, ...]


class Router:
    """Finds the route of a method and a path as it was sent."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._plain: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        patterns: dict[str, dict[str, Route]] = {}
        for route in routes:
            found = patterns if "{" in route.path else self._plain
            methods = found.setdefault(route.path, {})
            assert route.method not in methods, f"{route.method} {route.path} is there twice"
            methods[route.method] = route
        for path, methods in patterns.items():
            self._patterns.append((re.compile(re.sub(r"\{[a-z]+\}", "([^/]+)", path)), methods))

    def find(self, method: str, path: str) -> Found | frozenset[str] | None:
        """Return the route with its path's parts; the other methods, if not this one; None if there is nothing.

        ValueError where the path is not percent-encoded UTF-8.
        """
        methods, parts = self._plain.get(path), tuple[str, ...]()
        if methods is None:
            for pattern, there in self._patterns:
                if match := pattern.fullmatch(path):
                    methods, parts = there, tuple(unquote(part, errors="strict") for part in match.groups())
                    break
            else:
                return None
        route = methods.get(method)
        return Found(route, parts) if route else frozenset(methods)
