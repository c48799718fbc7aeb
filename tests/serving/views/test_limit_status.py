from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

import pytest

from tidegate.operators.gate.customer_limits import CatalogLimits
from tidegate.operators.gate.decision import AccountView
from tidegate.operators.model.aggregates import Kind
from tidegate.operators.model.catalog import Catalog, Limit, Meter, Plan, Threshold, Tier
from tidegate.operators.model.ports import Held
from tidegate.operators.model.records import Total
from tidegate.serving.views.limit_status import Level, LimitStatus, bill, limit_status, view_of, worst_status
from tidegate.settings.catalog.file import parse_catalog

HALF = Threshold(percent=Decimal(50))
CAPPED = Limit(included=Decimal(60), cap=Decimal(100), grace_pct=Decimal(10), thresholds=(HALF,))

NOW = 10**15


def account(
    catalog: Catalog, used: Mapping[str, Decimal], held: Held | None = None, customer: str = "anyone"
) -> AccountView:
    own = CatalogLimits(catalog, 1).find(customer)
    start, end = own.find_period(NOW)
    totals = {
        meter: Total(customer, "period", meter, start, end, f"{total:f}", 1, 1, NOW, 0, 0, 0, True)
        for meter, total in used.items()
    }
    return view_of(own, totals, held, NOW)


def status(meter: str, limit: Limit, total: Decimal, kind: Kind) -> LimitStatus:
    """The limit status where this is the only limit, and nothing is held."""
    catalog = Catalog((Meter(meter, "e", kind, "n"),), {"p": Plan("p", limits={meter: limit})}, {}, "p")
    return limit_status(account(catalog, {meter: total}), meter)


@pytest.mark.parametrize(
    ("limit", "total", "level", "words"),
    [
        (CAPPED, 49, Level.FREE, "ok"),
        (CAPPED, 50, Level.NOTED, "50 %"),
        (CAPPED, 61, Level.OVERAGE, "overage"),
        (CAPPED, 100, Level.GRACE, "in grace"),
        (CAPPED, 109, Level.GRACE, "in grace"),
        (CAPPED, 110, Level.DENIED, "DENIED"),
        (Limit(cap=Decimal(100)), 99, Level.FREE, "ok"),
        (Limit(cap=Decimal(100)), 100, Level.DENIED, "DENIED"),
        (Limit(cap=Decimal(100), shadow=True), 100, Level.NOTED, "would deny"),
        (Limit(cap=Decimal(100), on_cap="warn"), 100, Level.OVER, "over cap"),
        (Limit(cap=Decimal(100), on_cap="allow"), 100, Level.OVERAGE, "overage"),
        (Limit(), 10**15, Level.FREE, "ok"),
        (Limit(cap=Decimal(0)), 0, Level.DENIED, "DENIED"),
    ],
)
def test_levels(limit: Limit, total: int, level: Level, words: str) -> None:
    found = status("tokens", limit, Decimal(total), "sum")
    assert (found.level, found.words) == (level, words)


@pytest.mark.parametrize(
    ("kind", "cap", "total", "words"),
    [
        ("sum", "0.9", "0", "ok"),
        ("sum", "0.9", "0.5", "ok"),
        ("sum", "0.9", "0.9", "DENIED"),
        ("sum", "100", "99.5", "ok"),
        ("count", "0.9", "0", "DENIED"),
        ("count", "100.5", "100", "DENIED"),
    ],
)
def test_who_can_still_use_a_fraction_is_not_denied(kind: Kind, cap: str, total: str, words: str) -> None:
    """What adds up fractions lets pass what is left; what counts lets pass whole ones only."""
    assert status("gpu", Limit(cap=Decimal(cap)), Decimal(total), kind).words == words


def test_half_of_nothing_is_not_used_up() -> None:
    limit = Limit(included=Decimal(0), on_cap="allow", thresholds=(Threshold(percent=Decimal(50)),))
    assert status("gpu", limit, Decimal(0), "sum").words == "ok"


def test_a_share_is_cut_off_so_that_100_percent_means_reached() -> None:
    assert status("tokens", CAPPED, Decimal("99.9"), "sum").share == 99
    assert status("tokens", Limit(cap=Decimal(0)), Decimal(0), "sum").share == 100
    assert status("tokens", Limit(), Decimal(5), "sum").share is None


def test_the_worst_meter_speaks_for_the_customer_and_levels_do_not_count() -> None:
    """Who has all its seats taken still uses the product."""
    meters = (
        Meter("calls", "c", "count"),
        Meter("tokens", "t", "sum", "n"),
        Meter("seats", "s", "last", "n"),
    )
    limits = {
        "calls": Limit(cap=Decimal(10)),
        "tokens": Limit(included=Decimal(5), tiers=(Tier(None, Decimal("0.5")),)),
        "seats": Limit(cap=Decimal(1)),
    }
    catalog = Catalog(meters, {"free": Plan("free", limits=limits)}, {}, "free")
    used = {"calls": Decimal(2), "tokens": Decimal(8), "seats": Decimal(1)}
    found = worst_status(account(catalog, used))
    assert (found.meter, found.level) == ("tokens", Level.OVERAGE)
    assert bill(account(catalog, used)) == Decimal("1.5")
    used["calls"] = Decimal(10)
    assert worst_status(account(catalog, used)).meter == "calls"


TINY, LARGE = Decimal("0.000000000001"), Decimal("1" + "0" * 30)
ALMOST = Decimal("9" * 30 + "." + "9" * 24)


@pytest.mark.parametrize("total", [Decimal(0), TINY, Decimal(10**15), ALMOST, LARGE.copy_negate()])
@pytest.mark.parametrize("cap", [TINY, Decimal(10**15) - TINY])
def test_no_cap_is_too_small_and_no_total_too_large(total: Decimal, cap: Decimal) -> None:
    limit = Limit(cap=cap, included=cap, thresholds=(Threshold(percent=Decimal("99.999999999999")),))
    found = status("tokens", limit, total, "sum")
    assert found.share is not None
    assert found.share == int(Fraction(total) * 100 / Fraction(cap))
    assert total < cap or found.level == Level.DENIED


def test_bills_add_up_to_the_last_digit() -> None:
    """A price of twelve places times a large total has more digits than a Decimal's own product keeps."""
    meters = tuple(Meter(f"m{i}", "c", "sum", "n") for i in range(3))
    limit = Limit(tiers=(Tier(None, Decimal("123456.789012345678")),))
    catalog = Catalog(meters, {"p": Plan("p", limits={meter.name: limit for meter in meters})}, {}, "p")
    total = Decimal("999999999999999999999.000000000000000000000001")
    found = bill(account(catalog, dict.fromkeys(("m0", "m1", "m2"), total)))
    assert Fraction(found) == 3 * Fraction(total) * Fraction("123456.789012345678")


@pytest.mark.parametrize(
    ("kind", "total", "words"),
    [
        ("unique", 3, "DENIED"),
        ("unique", 2, "ok"),
        ("max", 3, "ok"),
        ("max", 4, "DENIED"),
        ("last", 4, "DENIED"),
    ],
)
def test_customers_are_listed_by_meters_of_every_kind(kind: str, total: int, words: str) -> None:
    """Who is at the cap of a `unique` meter is denied the next value, and was on no list."""
    catalog = parse_catalog(
        f"meters:\n  - {{name: users, event_name: e, aggregation: {{type: {kind}, key: u}}}}\n"
        "default_plan: p\nplans: {p: {limits: {users: {cap: 3}}}}\n"
    )
    found = worst_status(account(catalog, {"users": Decimal(total)}, customer="acme"))
    assert (found.meter, found.words) == ("users", words)
