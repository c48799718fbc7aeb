"""Thresholds: levels of a total that rise and resolve, with hysteresis, and alerts that repeat exactly on replay.

A limit becomes up to three ladders of levels: its thresholds, its cap, its included quantity. A threshold at the cap is
the cap's own level and is reported once. A state is how many levels of each ladder hold, and how many alerts it has
sent. Levels are integers, quantities times 10²⁴ rounded up, so that comparisons are exact whatever the percentage.
"""

from bisect import bisect_right
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_hexdigest, xxh3_128_hexdigest

from tidegate.operators.columns.quantity import SCALE, format_quantity, scale
from tidegate.operators.model.catalog import Limit

NEVER_NEXT = 2**63 - 1

RuleState = list[int]
"""Per ladder two numbers: levels that hold, alerts sent. `advance_state` changes it in place."""


class Ladder(NamedTuple):
    """Levels in ascending order: level i rises at `ups[i]` and still holds at `downs[i]`."""

    rule: str
    raised: str
    resolved: str
    ups: tuple[int, ...]
    downs: tuple[int, ...]
    labels: tuple[str, ...]


class AlertRules(NamedTuple):
    """The ladders of one customer and meter under one limit."""

    version: str
    limit: str | None
    ladders: tuple[Ladder, ...]

    def create_state(self) -> RuleState:
        """Return the state of a period in which nothing has happened."""
        return [0, 0] * len(self.ladders)

    def find_next_up(self, state: RuleState) -> int:
        """Return the total (times 10²⁴) below which no further level rises."""
        lowest = NEVER_NEXT * SCALE
        for ladder, held in zip(self.ladders, state[::2], strict=True):
            if held < len(ladder.ups) and ladder.ups[held] < lowest:
                lowest = ladder.ups[held]
        return lowest


class RuleChange(NamedTuple):
    """One change of a rule's state, from which an alert is built."""

    rule: str
    kind: str
    state: str
    level: str
    turn: int


def build_rules(limit: Limit) -> AlertRules:
    """Return the ladders of a limit; a limit without levels has none."""
    base = limit.cap if limit.cap is not None else limit.included
    left = 1 - Fraction(limit.hysteresis_pct) / 100
    ladders = []
    levels = sorted(
        (
            (Fraction(base or 0) * Fraction(t.percent) / 100, f"{format_plain(t.percent)}%")
            if t.percent is not None
            else (Fraction(t.absolute or 0), format_plain(t.absolute or Decimal(0)))
            for t in limit.thresholds
        ),
        key=lambda level: level[0],
    )
    levels = [level for level in levels if limit.cap is None or level[0] != limit.cap]
    if levels:
        ladders.append(_build_ladder("threshold", "threshold", "threshold", levels, left))
    if limit.cap is not None:
        cap = [(Fraction(limit.cap), format_plain(limit.cap))]
        ladders.append(_build_ladder("cap", "cap_reached", "cap_released", cap, left))
    if limit.included is not None:
        # Overage begins past the included quantity, so one step of 10⁻²⁴ above it.
        value = Fraction(limit.included)
        ups, downs = (scale(limit.included) + 1,), (floor(value * left * SCALE) + 1,)
        labels = (format_plain(limit.included),)
        ladders.append(Ladder("overage", "overage_started", "overage_ended", ups, downs, labels))
    return AlertRules(
        compute_limit_version(limit), None if base is None else format_plain(base), tuple(ladders)
    )


def advance_state(rules: AlertRules, state: RuleState, total: int) -> Iterator[RuleChange]:
    """Advance the state to a total (times 10²⁴) and yield one change for each ladder that moved."""
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
        yield RuleChange(ladder.rule, kind, change, label, state[2 * i + 1])


def review_state(rules: AlertRules, held: dict[str, int], total: int) -> tuple[RuleState, list[RuleChange]]:
    """Return the state and changes of a total under a changed limit; `held` is what held under the old limit, by rule.

    Levels that hold are raised again, under the new version. A rule whose levels have all gone is resolved.
    """
    state = rules.create_state()
    changes = list(advance_state(rules, state, total))
    raised = {change.rule for change in changes}
    kinds = {"threshold": "threshold", "cap": "cap_released", "overage": "overage_ended"}
    for rule, levels in held.items():
        if levels and rule not in raised:
            turn = 1
            for i, ladder in enumerate(rules.ladders):
                if ladder.rule == rule:
                    turn = state[2 * i + 1] = state[2 * i + 1] + 1
            changes.append(RuleChange(rule, kinds[rule], "resolved", "none", turn))
    return state, changes


def compute_alert_id(
    rule: str,
    customer: str,
    meter: str,
    period_start: int,
    level: str,
    limit_version: str,
    state: str,
    turn: int,
) -> str:
    """Return 32 hex digits that are the same whenever the same change is found again, and for no other change."""
    parts = [rule, customer, meter, period_start, level, limit_version, state, turn]
    return xxh3_128_hexdigest(msgspec.json.encode(parts))


def compute_limit_version(limit: Limit) -> str:
    """Return 16 hex digits that change with anything the limit says, and with nothing else."""
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
    return xxh3_64_hexdigest(msgspec.json.encode(_make_plain(parts)))


def format_plain(value: object) -> str:
    """Return decimal text without exponent or trailing zeros."""
    assert isinstance(value, Decimal | int)
    return format_quantity(scale(value))


def _build_ladder(
    rule: str, raised: str, resolved: str, levels: list[tuple[Fraction, str]], left: Fraction
) -> Ladder:
    # A level of 0 is reached by the first usage, not by an empty total.
    ups = tuple(max(ceil(value * SCALE), 1) for value, _ in levels)
    downs = tuple(max(ceil(value * left * SCALE), 1 if left else 0) for value, _ in levels)
    return Ladder(rule, raised, resolved, ups, downs, tuple(label for _, label in levels))


def _make_plain(value: object) -> object:
    """Return the value with every Decimal as plain text, so that 500 and 500.0 are equal."""
    if isinstance(value, list | tuple):
        return [_make_plain(part) for part in value]
    return format_plain(value) if isinstance(value, Decimal) else value
