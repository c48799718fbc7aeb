"""When a total passes a level: states that rise and resolve, with hysteresis, and alerts that repeat on replay.

A limit becomes up to three ladders of levels: its thresholds, its cap, its included quantity. A threshold at the cap is
the cap's own level, and reported once. A state is how many levels of each ladder hold, and how many alerts it has sent.
Levels are integers, quantities times 10²⁴ rounded up to that grid, so that comparing is exact whatever the percentage.
"""

from bisect import bisect_right
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_hexdigest, xxh3_128_hexdigest

from tidegate.operators.columns.quantity import SCALE, scaled, text
from tidegate.operators.model.catalog import Limit

NEVER_NEXT = 2**63 - 1

State = list[int]
"""Per ladder two numbers: levels that hold, alerts sent. Changed in place by `step`."""


class Ladder(NamedTuple):
    """Levels in ascending order: level i rises at `ups[i]` and still holds at `downs[i]`."""

    rule: str
    raised: str
    resolved: str
    ups: tuple[int, ...]
    downs: tuple[int, ...]
    labels: tuple[str, ...]


class Rules(NamedTuple):
    """What is watched of one customer and meter under one limit."""

    version: str
    limit: str | None
    ladders: tuple[Ladder, ...]

    def fresh(self) -> State:
        """The state of a period in which nothing has happened."""
        return [0, 0] * len(self.ladders)

    def next_up(self, state: State) -> int:
        """No level rises while the total (times 10²⁴) is below this."""
        lowest = NEVER_NEXT * SCALE
        for ladder, held in zip(self.ladders, state[::2], strict=True):
            if held < len(ladder.ups) and ladder.ups[held] < lowest:
                lowest = ladder.ups[held]
        return lowest


class Change(NamedTuple):
    """One alert in the making."""

    rule: str
    kind: str
    state: str
    level: str
    turn: int


def rules_of(limit: Limit) -> Rules:
    """The ladders of a limit; a limit without levels has none."""
    base = limit.cap if limit.cap is not None else limit.included
    left = 1 - Fraction(limit.hysteresis_pct) / 100
    ladders = []
    levels = sorted(
        (
            (Fraction(base or 0) * Fraction(t.percent) / 100, f"{plain(t.percent)}%")
            if t.percent is not None
            else (Fraction(t.absolute or 0), plain(t.absolute or Decimal(0)))
            for t in limit.thresholds
        ),
        key=lambda level: level[0],
    )
    levels = [level for level in levels if limit.cap is None or level[0] != limit.cap]
    if levels:
        ladders.append(_ladder("threshold", "threshold", "threshold", levels, left))
    if limit.cap is not None:
        cap = [(Fraction(limit.cap), plain(limit.cap))]
        ladders.append(_ladder("cap", "cap_reached", "cap_released", cap, left))
    if limit.included is not None:
        # Overage begins past the included quantity, so one step of the grid above it.
        value = Fraction(limit.included)
        ups, downs = (scaled(limit.included) + 1,), (floor(value * left * SCALE) + 1,)
        labels = (plain(limit.included),)
        ladders.append(Ladder("overage", "overage_started", "overage_ended", ups, downs, labels))
    return Rules(limit_version(limit), None if base is None else plain(base), tuple(ladders))


def step(rules: Rules, state: State, total: int) -> Iterator[Change]:
    """Moves the state to a total (times 10²⁴) and yields one change for each ladder that moved."""
    for i, ladder in enumerate(rules.ladders):
        held = state[2 * i]
        risen = bisect_right(ladder.ups, total)
        if risen > held:
            change, label = "raised", ladder.labels[risen - 1]
        else:
            risen = sum(total >= down for down in ladder.downs[:held])
            if risen == held:
                continue
            change, label = "resolved", ladder.labels[held - 1]
        state[2 * i] = risen
        state[2 * i + 1] += 1
        kind = ladder.raised if change == "raised" else ladder.resolved
        yield Change(ladder.rule, kind, change, label, state[2 * i + 1])


def review(rules: Rules, held: dict[str, int], total: int) -> tuple[State, list[Change]]:
    """The state and changes of a total under a changed limit; `held` is what held under the old one, by rule.

    Levels that hold are raised anew, under the new version. A rule whose levels have all gone is resolved.
    """
    state = rules.fresh()
    changes = list(step(rules, state, total))
    raised = {change.rule for change in changes}
    kinds = {"threshold": "threshold", "cap": "cap_released", "overage": "overage_ended"}
    for rule, levels in held.items():
        if levels and rule not in raised:
            turn = 1
            for i, ladder in enumerate(rules.ladders):
                if ladder.rule == rule:
                    turn = state[2 * i + 1] = state[2 * i + 1] + 1
            changes.append(Change(rule, kinds[rule], "resolved", "none", turn))
    return state, changes


def alert_id(
    rule: str,
    customer: str,
    meter: str,
    period_start: int,
    level: str,
    limit_version: str,
    state: str,
    turn: int,
) -> str:
    """32 hex digits that are the same whenever the same change is found again, and no other change's."""
    parts = [rule, customer, meter, period_start, level, limit_version, state, turn]
    return xxh3_128_hexdigest(msgspec.json.encode(parts))


def limit_version(limit: Limit) -> str:
    """16 hex digits that change with anything the limit says, and with nothing else."""
    parts = [
        limit.included,
        limit.cap,
        limit.on_cap,
        limit.grace_pct,
        limit.fail,
        limit.shadow,
        [(threshold.percent, threshold.absolute) for threshold in limit.thresholds],
        limit.hysteresis_pct,
        [(tier.up_to, tier.price) for tier in limit.tiers],
    ]
    return xxh3_64_hexdigest(msgspec.json.encode(_plainly(parts)))


def plain(value: object) -> str:
    """Decimal text without exponent or trailing zeros."""
    assert isinstance(value, Decimal | int)
    return text(scaled(value))


def _ladder(
    rule: str, raised: str, resolved: str, levels: list[tuple[Fraction, str]], left: Fraction
) -> Ladder:
    # A level of 0 is reached by the first usage, not by none.
    ups = tuple(max(ceil(value * SCALE), 1) for value, _ in levels)
    downs = tuple(max(ceil(value * left * SCALE), 1 if left else 0) for value, _ in levels)
    return Ladder(rule, raised, resolved, ups, downs, tuple(label for _, label in levels))


def _plainly(value: object) -> object:
    """The same with every Decimal as plain text, so that 500 and 500.0 are one."""
    if isinstance(value, list | tuple):
        return [_plainly(part) for part in value]
    return plain(value) if isinstance(value, Decimal) else value
