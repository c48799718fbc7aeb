"""What came of a call of `tidegate`."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    def lines(self) -> list[Any]:
        """Standard output as objects, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Outcome]
