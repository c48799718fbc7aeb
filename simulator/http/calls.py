"""A request as the provider's handlers see it, and their answers."""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from simulator.http.faults import Fault
from simulator.state.instants import read_instant
from simulator.state.platform import Platform
from simulator.state.problems import Problem, malformed, wrong_query

T = TypeVar("T")

PAGE_DEFAULT: Final = 10
PAGE_MAX: Final = 100


class Call(NamedTuple):
    """A request. `params` are the parts of the path, `fault` is what must go wrong inside."""

    method: str
    path: str
    params: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes = b""
    fault: Fault | None = None

    def read_text(self, name: str) -> str | None:
        return self.query.get(name)

    def read_number(self, name: str) -> int | None:
        """Return a whole number of 0 or more.

        Raises:
            Problem: status 422.
        """
        value = self.query.get(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and int(value) < 2**31):
            raise wrong_query(f"{name}: needs a whole number from 0, got {value!r}")
        return int(value)

    def read_flag(self, name: str) -> bool | None:
        value = self.query.get(name)
        if value not in (None, "true", "false"):
            raise wrong_query(f"{name}: needs true or false, got {value!r}")
        return None if value is None else value == "true"

    def read_instant(self, name: str) -> int | None:
        value = self.query.get(name)
        try:
            return None if value is None else read_instant(value)
        except ValueError as error:
            raise wrong_query(f"{name}: {error}") from None

    def read_choice(self, name: str, choices: Iterable[str]) -> str | None:
        value = self.query.get(name)
        if value is not None and value not in choices:
            raise wrong_query(f"{name}: needs one of {', '.join(choices)}, got {value!r}")
        return value

    def read_body(self, type: type[T]) -> T:
        """Return the JSON body as `type`.

        Raises:
            Problem: status 422.
        """
        try:
            return msgspec.json.decode(self.body, type=type)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise malformed(str(error)) from None


class Answer(NamedTuple):
    """An answer. `document` becomes JSON; None is an empty body. `events` and `stored` are for the request log."""

    status: int
    document: Any = None
    events: int = 0
    stored: int = 0
    problem: Problem | None = None


Handler = Callable[[Platform, Call], Answer]


def render_page(platform: Platform, call: Call, found: Iterable[T], view: Callable[[T], Any]) -> Answer:
    """Return the requested page of `found`, each item rendered by `view`."""
    size = call.read_number("page_size")
    size = PAGE_DEFAULT if size is None else size
    if size > PAGE_MAX:
        if platform.switches.page_cap == "reject":
            raise wrong_query(f"page_size: needs {PAGE_MAX} or less, got {size}")
        size = PAGE_MAX
    skip = (call.read_number("page_number") or 0) * size
    return Answer(200, {"items": [view(item) for item in islice(found, skip, skip + size)]})


def render_refusal(problem: Problem) -> Answer:
    return Answer(problem.status, {"code": problem.code, "message": problem.message}, problem=problem)
