"""Faults on demand: once, in a scripted order, or by chance; repeatable by seed."""

from collections import deque
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from simulator.state.identifiers import draw_chance
from simulator.state.instants import SECOND

Kind = Literal[
    "ok",
    "rate_limited",
    "error",
    "error_after_commit",
    "reset",
    "reset_after_commit",
    "hang",
    "hang_after_commit",
    "slow",
    "html",
    "truncated",
    "no_count",
    "drop",
    "double",
    "refuse",
]

BEFORE_COMMIT: Final = frozenset({"rate_limited", "error", "reset", "hang"})
WRONG_BODIES: Final = frozenset({"html", "truncated", "no_count"})


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One fault of one request.

    `status` belongs to `error`, `error_after_commit`, `refuse` and, as a 2xx, to `no_count`, whose body is `body`.
    `delay_s` belongs to `slow`, and says how long `hang` holds the connection. `drop` and `double` apply to `events` of
    a batch. `match` is the part of an id that `refuse` rejects. `commit` says whether wrong bodies follow after the
    work was done.
    """

    kind: Kind
    status: Annotated[int, Meta(ge=200, le=599)] | None = None
    delay_s: Annotated[float, Meta(ge=0, le=3600)] | None = None
    events: Annotated[int, Meta(ge=1, le=1000)] = 1
    match: str = ""
    commit: bool = True
    body: str | None = None
    retry_after: str | None = None
    draw: float = 0.0

    def __post_init__(self) -> None:
        if self.status is not None and (self.status < 300) != (self.kind == "no_count"):
            raise ValueError(f"status: {self.status} does not go with {self.kind}")


class Rule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """When faults strike: at requests that fit `where`, from the `skip`-th on, `times` often, by `probability`.

    `where` is `ingest`, `reads`, `writes` (all but reads and ingest), `any`, or the start of a path. The rule ends
    `for_s` seconds of the provider's time after it was made.
    """

    fault: Fault
    where: str = "ingest"
    times: Annotated[int, Meta(ge=1)] | None = 1
    probability: Annotated[float, Meta(ge=0, le=1)] = 1.0
    skip: Annotated[int, Meta(ge=0)] = 0
    for_s: Annotated[float, Meta(gt=0)] | None = None
    id: str = ""
    seen: int = 0
    struck: int = 0
    made_at: int = 0


class Plan:
    """The planned faults. A script comes first, step by step; then the oldest rule that strikes."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._made = 0
        self._rules: list[Rule] = []
        self._scripts: list[tuple[str, deque[Fault]]] = []

    def add(self, rule: Rule, now: int) -> Rule:
        self._made += 1
        rule.id, rule.made_at = f"rule{self._made}", now
        self._rules.append(rule)
        return rule

    def script(self, where: str, steps: list[Fault]) -> None:
        """Give the next requests that fit `where` one step each; `ok` lets one through unharmed."""
        self._scripts.append((where, deque(steps)))

    def clear(self, id: str | None = None) -> None:
        self._rules = [rule for rule in self._rules if id is not None and rule.id != id]
        if id is None:
            self._scripts.clear()

    def strike(self, method: str, path: str, now: int) -> Fault | None:
        """Return the fault of this request, if any."""
        for where, steps in self._scripts:
            if steps and _fits(where, method, path):
                step = steps.popleft()
                return None if step.kind == "ok" else step
        for rule in self._rules:
            if _fits(rule.where, method, path) and (fault := self._try(rule, now)):
                return fault
        return None

    def list_rules(self) -> dict[str, Any]:
        return {
            "rules": self._rules,
            "scripts": [{"where": where, "steps": list(steps)} for where, steps in self._scripts if steps],
        }

    def _try(self, rule: Rule, now: int) -> Fault | None:
        if rule.times is not None and rule.struck >= rule.times:
            return None
        if rule.for_s is not None and now >= rule.made_at + int(rule.for_s * SECOND):
            return None
        rule.seen += 1
        if rule.seen <= rule.skip or draw_chance(self._seed, rule.id, rule.seen) >= rule.probability:
            return None
        rule.struck += 1
        return msgspec.structs.replace(rule.fault, draw=draw_chance(self._seed, f"{rule.id}/draw", rule.seen))


def _fits(where: str, method: str, path: str) -> bool:
    is_ingest = method == "POST" and path == "/events/ingest"
    if where == "any":
        return True
    if where == "ingest":
        return is_ingest
    if where == "reads":
        return method == "GET"
    if where == "writes":
        return method != "GET" and not is_ingest
    return path.startswith(where)
