"""What may be done about drift, as a table: everything else must not be done."""

from dataclasses import dataclass, field
from typing import Any, get_args

import pytest

from tidegate.operators.billing.drift import (
    IN_ANOTHER_PERIOD,
    OF_ANOTHER_PERIOD,
    Cause,
    Finding,
    OwnEvent,
    Span,
)
from tidegate.operators.billing.outgoing import AGE_MAX
from tidegate.operators.billing.repairs import ADVICE, OWN_TOTAL_CAUSES, Circumstances, Repair, plan_repairs

HOUR = 3_600_000_000
NOW = 497_000 * HOUR
OPEN, CLOSED = Span(NOW - 100 * HOUR, NOW + 100 * HOUR), Span(NOW - 100 * HOUR, NOW - HOUR)


def own(id: str, age: int, quantity: int = 5) -> OwnEvent:
    at = NOW - age
    return OwnEvent(id, at, at, "acknowledged", "", quantity, at, at, at)


YOUNG, OLD = own("young", AGE_MAX - 1), own("old", AGE_MAX + 1)


def where(**given: Any) -> Circumstances:
    fields: dict[str, Any] = dict(
        kind="sum", now=NOW, own_period=OPEN, provider_period=OPEN,
        own_events={e.id: e for e in (YOUNG, OLD)}, provider_quantities={"x": 7}, is_calm=True,
        is_republished=True, resent_ids=frozenset(), adopted=0, is_adjusting=False, in_credits=False,
    )  # fmt: skip
    return Circumstances(**fields | given)


def acts(finding: Finding, **given: Any) -> list[tuple[str, int, tuple[str, ...]]]:
    return [(repair.act, repair.quantity, repair.ids) for repair in plan_repairs([finding], where(**given))]


@dataclass
class Row:
    cause: Cause
    quantity: int
    ids: tuple[str, ...]
    expected: list[tuple[str, int, tuple[str, ...]]]
    given: dict[str, Any] = field(default_factory=dict)


IN_CREDITS = {"in_credits": True}
AT_CLOSED = {"own_period": CLOSED, "provider_period": CLOSED}
TABLE = [
    Row("missing_there", 10, ("young", "old"), [("resend", 0, ("young",)), ("late", 0, ("old",))]),
    Row("missing_there", 10, ("young", "old"), [("late", 0, ("old",))], {"resent_ids": frozenset(["young"])}),
    Row("missing_there", 5, ("old",), [], AT_CLOSED),
    Row("missing_there", 5, ("old",), [("debit", 5, ("old",))], AT_CLOSED | IN_CREDITS),
    Row("missing_there", 5, ("old",), [], AT_CLOSED | IN_CREDITS | {"resent_ids": frozenset(["old"])}),
    Row("missing_here", -7, (), [("adjust", 7, ())]),
    Row("missing_here", -7, (), [("rewrite", 0, ())], {"is_republished": False}),
    Row("missing_here", -7, (), [], {"is_calm": False}),
    Row("missing_here", -7, (), [], {"is_adjusting": True}),
    Row("missing_there", 5, ("old",), [], {"kind": "last"}),
    Row("missing_there", 5, ("young",), [("resend", 0, ("young",))], {"kind": "last"}),
    Row("missing_here", -7, (), [], {"kind": "max"}),
    Row("extra_there", -7, ("x",), [("adjust", 7, ("x",))], {"is_republished": False, "is_calm": False}),
    Row("extra_there", -7, ("x",), [], {"adopted": 7}),
    Row("extra_there", -7, ("x",), [("adjust", 3, ("x",))], {"adopted": 4}),
    Row("boundary", 7, ("x",), [("adjust", -7, ("x",))]),
    Row("boundary", 7, ("x",), [], {"own_period": CLOSED}),
    Row("boundary", 7, ("x",), [], {"has_arrived": False}),
    Row("boundary", -7, ("x",), [("adjust", 7, ("x",))], {"has_arrived": False}),
    Row("doubled_there", -7, ("x",), []),
    Row("doubled_there", -7, ("x",), [("credit", 7, ("x",))], IN_CREDITS),
    Row("late_after_close", 7, ("x",), []),
    Row("late_after_close", 7, ("x",), [("debit", 7, ("x",))], IN_CREDITS),
    *(
        Row(cause, 7, ("x",), [], IN_CREDITS)
        for cause in get_args(Cause)
        if cause not in (*OWN_TOTAL_CAUSES, "missing_there", "doubled_there", "late_after_close")
    ),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.cause}-{sorted(row.given)}")
def test_what_is_allowed(row: Row) -> None:
    assert acts(Finding(row.cause, row.quantity, row.ids), **row.given) == row.expected


def test_one_adjustment_sets_a_total_right_whatever_it_comes_of() -> None:
    found = [
        Finding("missing_here", -7),
        Finding("extra_there", -2, ("x",)),
        Finding("missing_there", 5, ("young",)),
    ]
    assert plan_repairs(found, where()) == [
        Repair(
            "resend", "missing at the provider, and recent enough to be sent with its own time", 0, ("young",)
        ),
        Repair(
            "adjust",
            "our total is set to the sum of both sides' events: extra_there, missing_here",
            9,
            ("x",),
        ),
    ]


def test_every_cause_has_advice() -> None:
    assert set(ADVICE) == set(get_args(Cause))


def test_what_is_of_another_period_leaves_also_where_the_ends_differ() -> None:
    """As after a gap, whose start the catalog does not have; not beside other adjustments, nor for another start."""
    longer = Span(OPEN.start, OPEN.end + 1)
    moved = Finding("boundary", 7, ("x",), OF_ANOTHER_PERIOD)
    assert acts(moved, own_period=longer) == [("adjust", -7, ("x",))]
    assert acts(moved, own_period=longer, adopted=-7) == [] == acts(moved, own_period=longer, adopted=3)
    assert acts(moved, own_period=Span(OPEN.start - 1, OPEN.end)) == []
    assert acts(moved._replace(detail=IN_ANOTHER_PERIOD), own_period=longer) == []
