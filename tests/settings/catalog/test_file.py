import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.places import ROOT
from tidegate.operators.model.catalog import (
    Catalog,
    Condition,
    Customer,
    Filter,
    Limit,
    Meter,
    Plan,
    SpendCap,
    Threshold,
    Tier,
)
from tidegate.operators.model.periods import Anchored, Billing, Calendar, Never
from tidegate.settings.catalog.file import CatalogError, load_catalog, parse_catalog
from tidegate.settings.catalog.plans import MAX_LAG

METERS = "meters: [{name: tokens, event_name: llm.tokens, aggregation: {type: sum, key: n}}]\n"

EVERYTHING = """\
meters:
  - name: tokens_in
    event_name: llm.tokens
    aggregation: {type: sum, key: input_tokens}
    filter: {conjunction: and, clauses: [{key: cached, operator: equals, value: false}]}
    unit: tokens
  - {name: calls, event_name: api.call, aggregation: {type: count}}
  - {name: users, event_name: api.call, aggregation: {type: unique, key: user}}
default_plan: free
plans:
  free: {}
  pro:
    zone: Europe/Berlin
    period: {type: anchored, every: 30, unit: day, anchor: 2026-01-31T00:00:00Z}
    limits:
      tokens_in:
        included: 100000
        cap: 200000.50
        on_cap: warn
        grace_pct: 2.5
        fail: closed
        shadow: true
        thresholds: [50%, 80.5%, 150000]
        hysteresis_pct: 5
        tiers: [{up_to: 1e6, price: "0.002"}, {price: 0.1}]
      calls: {included: 10}
customers:
  cus_acme:
    plan: pro
    zone: Asia/Kathmandu
    billing_id: cus_Ab12
    period: {type: billing, edges: [2026-11-03T09:12:44Z, '2026-12-03T10:12:44+01:00']}
    limits:
      tokens_in: {cap: 500000, thresholds: []}
      calls: {included: null, cap: 7}
      users: {cap: 3}
  cus_default: {}
"""

limited = partial(Limit, max_lag=MAX_LAG)
capped = partial(SpendCap, max_lag=MAX_LAG)

PRO_TOKENS = limited(
    included=Decimal(100_000),
    cap=Decimal("200000.5"),
    on_cap="warn",
    grace_pct=Decimal("2.5"),
    fail="closed",
    shadow=True,
    thresholds=(
        Threshold(percent=Decimal(50)),
        Threshold(percent=Decimal("80.5")),
        Threshold(absolute=Decimal(150_000)),
    ),
    hysteresis_pct=Decimal(5),
    tiers=(Tier(Decimal(1_000_000), Decimal("0.002")), Tier(None, Decimal("0.1"))),
)


def test_everything_is_read() -> None:
    assert parse_catalog(EVERYTHING) == Catalog(
        meters=(
            Meter(
                "tokens_in",
                "llm.tokens",
                "sum",
                "input_tokens",
                Filter("and", (Condition("cached", "equals", False),)),
                "tokens",
            ),
            Meter("calls", "api.call", "count"),
            Meter("users", "api.call", "unique", "user"),
        ),
        plans={
            "free": Plan("free", Calendar("month")),
            "pro": Plan(
                "pro",
                Anchored(30, "day", datetime(2026, 1, 31, tzinfo=UTC)),
                "Europe/Berlin",
                {"tokens_in": PRO_TOKENS, "calls": limited(included=Decimal(10))},
            ),
        },
        customers={
            "cus_acme": Customer(
                "cus_acme",
                "pro",
                "Asia/Kathmandu",
                Billing(
                    (
                        datetime(2026, 11, 3, 9, 12, 44, tzinfo=UTC),
                        datetime(2026, 12, 3, 9, 12, 44, tzinfo=UTC),
                    )
                ),
                {
                    "tokens_in": limited(
                        PRO_TOKENS.included,
                        Decimal(500_000),
                        "warn",
                        PRO_TOKENS.grace_pct,
                        "closed",
                        True,
                        (),
                        Decimal(5),
                        PRO_TOKENS.tiers,
                    ),
                    "calls": limited(cap=Decimal(7)),
                    "users": limited(cap=Decimal(3)),
                },
                "cus_Ab12",
            ),
            "cus_default": Customer("cus_default", "free"),
        },
        default_plan="free",
    )


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        *(
            (f"{{type: calendar, every: {unit}}}", Calendar(unit))
            for unit in ("month", "week", "day", "hour")
        ),
        (
            "{type: anchored, every: 1, unit: month, anchor: 2026-01-31 12:00:00+05:45}",
            Anchored(1, "month", datetime(2026, 1, 31, 6, 15, tzinfo=UTC)),
        ),
        ("{type: billing, edges: [2026-01-01T00:00:00Z]}", Billing((datetime(2026, 1, 1, tzinfo=UTC),))),
        ("{type: never}", Never()),
    ],
)
def test_periods(text: str, policy: object) -> None:
    assert parse_catalog(f"{METERS}plans: {{p: {{period: {text}}}}}").plans["p"].period == policy


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("0.1", "0.1"),
        ("0.10", "0.1"),
        ("1.0", "1"),
        ("1e3", "1000"),
        ("1E+15", "1000000000000000"),
        ("1000000000000000.0", "1000000000000000"),
        ("0.000000000001", "0.000000000001"),
        ("1e-12", "0.000000000001"),
        ("123456789012345.123456789012", "123456789012345.123456789012"),
        ('"0.30"', "0.3"),
    ],
)
def test_numbers_are_exact_and_of_one_form(text: str, value: str) -> None:
    """Two ways to write a limit are one limit, also where it is shown or hashed; 0.1 is a tenth."""
    cap = (
        parse_catalog(f"{METERS}plans: {{p: {{limits: {{tokens: {{cap: {text}}}}}}}}}")
        .plans["p"]
        .limits["tokens"]
        .cap
    )
    assert isinstance(cap, Decimal)
    assert f"{cap:f}" == value


@pytest.mark.parametrize(
    "text", ["no", "0123", "0x1F", "1e5", "2026-01-31", "12:30:45", "null", "~", "1_000", "y"]
)
def test_customers_keep_their_names(text: str) -> None:
    """YAML 1.1 reads these as false, 83, 31, a float, a date, 45045, nothing, 1000 and true."""
    catalog = parse_catalog(
        f"{METERS}plans: {{p: {{}}}}\ncustomers:\n  {text}: {{plan: p, billing_id: 0{text}}}"
    )
    assert list(catalog.customers) == [text]
    assert catalog.customers[text].billing_id == f"0{text}"
    assert {type(name) for name in (*catalog.customers, catalog.customers[text].plan)} == {str}


def test_plans_and_meters_keep_their_names_too() -> None:
    catalog = parse_catalog(
        "meters: [{name: 010, event_name: off, aggregation: {type: max, key: 1.50}, unit: 1e3}]\n"
        "default_plan: no\nplans: {no: {limits: {010: {cap: 1}}}}"
    )
    assert catalog.meters == (Meter("010", "off", "max", "1.50", None, "1e3"),)
    assert type(catalog.meters[0].name) is type(catalog.default_plan) is str
    assert catalog.limit_of("anyone", "010").cap == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("5.0", 5),
        ("0.1", Decimal("0.1")),
        ('"5"', "5"),
        ("true", True),
        ('"true"', "true"),
        ("no", "no"),
        ("0123", "0123"),
        ("2026-01-31", "2026-01-31"),
    ],
)
def test_constants_of_filters_have_the_type_that_is_written(text: str, value: object) -> None:
    """A property `5` is not a property `"5"`, on the provider and here."""
    catalog = parse_catalog(
        "meters:\n- name: m\n  event_name: e\n  aggregation: {type: count}\n"
        f"  filter: {{conjunction: or, clauses: [{{key: k, operator: equals, value: {text}}}]}}"
    )
    assert catalog.meters[0].filter is not None
    (found,) = catalog.meters[0].filter.clauses
    assert isinstance(found, Condition)
    assert (found.value, type(found.value)) == (value, type(value))


def test_filters_nest_and_mix() -> None:
    condition = "{key: k, operator: contains, value: x}"
    nested = f"{{conjunction: or, clauses: [{condition}, {{conjunction: and, clauses: [{condition}]}}]}}"
    catalog = parse_catalog(
        "meters:\n- name: m\n  event_name: e\n  aggregation: {type: count}\n"
        f"  filter: {{conjunction: and, clauses: [{nested}, {condition}]}}"
    )
    leaf = Condition("k", "contains", "x")
    assert catalog.meters[0].filter == Filter("and", (Filter("or", (leaf, Filter("and", (leaf,)))), leaf))


def test_a_spend_cap_is_the_customers_own_where_it_differs_else_the_plans() -> None:
    catalog = parse_catalog(
        f"{METERS}plans:\n  pro:\n"
        "    spend_cap: {cap: 99.5, on_cap: warn, grace_pct: 5, fail: closed, shadow: true}\n"
        "  free: {}\ndefault_plan: free\n"
        "customers:\n  raised: {plan: pro, spend_cap: {cap: 200}}\n  same: {plan: pro}\n"
        "  lifted: {plan: pro, spend_cap: {cap: null}}\n  own: {spend_cap: {cap: 1}}"
    )
    plans = capped(Decimal("99.5"), "warn", Decimal(5), "closed", True)
    assert catalog.spend_cap_of("raised") == replace(plans, cap=Decimal(200))
    assert catalog.spend_cap_of("same") == plans
    assert catalog.spend_cap_of("lifted") is catalog.spend_cap_of("stranger") is None
    assert catalog.spend_cap_of("own") == capped(Decimal(1))


def test_a_customer_may_lift_what_the_plan_has() -> None:
    catalog = parse_catalog(
        f"{METERS}plans: {{pro: {{limits: {{tokens: {{cap: 5, thresholds: [50%]}}}}}}}}\n"
        "customers: {acme: {plan: pro, limits: {tokens: {cap: null, thresholds: []}}}}"
    )
    assert catalog.limit_of("acme", "tokens") == limited()


QUANTITIES = st.decimals(0, 10**15, places=12) | st.integers(0, 10**15).map(Decimal)
LEVELS = QUANTITIES.filter(bool)
THRESHOLDS = st.builds(Threshold, absolute=LEVELS) | st.builds(Threshold, percent=LEVELS)
TIERS = st.lists(st.tuples(LEVELS, QUANTITIES), max_size=4, unique_by=lambda tier: tier[0]).map(
    lambda tiers: tuple(Tier(up_to, price) for up_to, price in sorted(tiers))
)
LIMITS = st.builds(
    Limit,
    included=st.none() | QUANTITIES,
    cap=QUANTITIES,
    on_cap=st.sampled_from(["block", "allow", "warn"]),
    grace_pct=st.decimals(0, 1000, places=3),
    fail=st.sampled_from(["open", "closed"]),
    shadow=st.booleans(),
    thresholds=st.lists(THRESHOLDS, max_size=4, unique=True).map(tuple),
    hysteresis_pct=st.decimals(0, 100, places=3),
    tiers=TIERS,
)
# Whatever JSON can quote and YAML can hold, on one line.
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable)


def written(limit: Limit) -> str:
    """The limit as YAML, all fields plain."""
    shown: dict[str, object] = {
        name: f"{value:f}" if isinstance(value, Decimal) else str(value).lower()
        for name, value in asdict(limit).items()
        if value is not None
    }
    levels = (f"{t.absolute:f}" if t.absolute is not None else f"{t.percent:f}%" for t in limit.thresholds)
    tiers = (f"{{up_to: {tier.up_to:f}, price: {tier.price:f}}}" for tier in limit.tiers)
    shown |= {"thresholds": f"[{', '.join(levels)}]", "tiers": f"[{', '.join(tiers)}]"}
    return "{" + ", ".join(f"{name}: {value}" for name, value in shown.items()) + "}"


@given(LIMITS, st.lists(NAMES, max_size=3, unique=True))
def test_what_is_written_is_read(limit: Limit, names: list[str]) -> None:
    customers = "".join(f"  {json.dumps(name, ensure_ascii=False)}: {{plan: pro}}\n" for name in names)
    catalog = parse_catalog(
        f"{METERS}plans: {{pro: {{limits: {{tokens: {written(limit)}}}}}}}\ncustomers:\n{customers or '  {}'}"
    )
    assert catalog.plans["pro"].limits["tokens"] == replace(limit, max_lag=MAX_LAG)
    assert list(catalog.customers) == names


@pytest.mark.parametrize(("text", "lag"), [("1s", 1_000_000), ("2m", 120_000_000), ("off", None)])
def test_how_old_totals_may_be(text: str, lag: int | None) -> None:
    catalog = parse_catalog(f"{METERS}plans: {{pro: {{limits: {{tokens: {{cap: 1, max_lag: {text}}}}}}}}}\n")
    assert catalog.plans["pro"].limits["tokens"].max_lag == lag


@pytest.mark.parametrize("text", ["5", "0s", "36d", "never", "-1s"])
def test_an_age_of_totals_that_makes_no_sense(text: str) -> None:
    with pytest.raises(CatalogError, match="max_lag"):
        parse_catalog(f"{METERS}plans: {{pro: {{limits: {{tokens: {{cap: 1, max_lag: {text}}}}}}}}}\n")


def test_files(folder: Path) -> None:
    file = folder / "catalog.yaml"
    file.write_text("\ufeff" + EVERYTHING)
    assert load_catalog(file) == load_catalog("catalog.yaml") == parse_catalog(EVERYTHING)
    file.write_bytes(b"meters: []\nplans: \xff")
    for path, message in (
        (file, f"{file}:2: needs UTF-8 text"),
        (folder / "gone.yaml", f"{folder}/gone.yaml: cannot be read: No such file or directory"),
        (folder, f"{folder}: cannot be read: Is a directory"),
    ):
        with pytest.raises(CatalogError) as caught:
            load_catalog(path)
        assert str(caught.value) == message
    file.write_bytes(b"meters: []\nplans: \xff")
    with pytest.raises(CatalogError) as caught:
        load_catalog(file)
    assert caught.value.problems[0].column == 8


def test_a_file_without_end_is_not_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.settings.catalog.file.BYTES_MAX", 1 << 20)
    with pytest.raises(CatalogError, match=r"^/dev/zero: needs 1 MiB or less$"):
        load_catalog("/dev/zero")


def test_the_example_is_a_catalog() -> None:
    catalog = load_catalog(ROOT / "examples" / "catalog.yaml")
    assert {meter.name: (meter.kind, meter.event_name, meter.key) for meter in catalog.meters} == {
        "tokens_in": ("sum", "llm.tokens", "input_tokens"),
        "tokens_out": ("sum", "llm.tokens", "output_tokens"),
        "calls": ("count", "api.call", None),
        "gpu_seconds": ("sum", "gpu.run", "seconds"),
        "active_users": ("unique", "api.call", "user"),
        "peak_context": ("max", "llm.tokens", "input_tokens"),
        "seats": ("last", "seats.set", "seats"),
    }
    assert set(catalog.plans) == {"free", "pro", "scale"} and catalog.default_plan == "free"
    assert catalog.zone_of("cus_003") == "Asia/Kathmandu"
    assert isinstance(catalog.period_of("cus_005"), Anchored)
    raised = catalog.limit_of("cus_004", "tokens_in")
    assert raised.cap == 400_000 and raised.tiers == catalog.plans["pro"].limits["tokens_in"].tiers
