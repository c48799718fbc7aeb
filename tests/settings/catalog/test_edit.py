"""A limit changed in the catalog's text: the text stays as people wrote it, and means the same but for that limit."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.places import ROOT
from tidegate.operators.model.catalog import Catalog, Customer
from tidegate.settings.catalog import edit
from tidegate.settings.catalog.edit import override_of, with_override
from tidegate.settings.catalog.file import CatalogError, parse_catalog
from tidegate.settings.catalog.yaml_nodes import Plain

EXAMPLE = (ROOT / "examples" / "catalog.yaml").read_text()
CALLS = """meters:
  - {name: calls, event_name: x, aggregation: {type: count}}
  - {name: more, event_name: x, aggregation: {type: count}}
"""

# Ways to write down customers, and who of them has a limit on calls.
PLANS = "default_plan: p\nplans: {p: {}}\n"
WAYS = {
    "in blocks": PLANS
    + "customers:\n  a:\n    plan: p\n    limits:\n      calls: {cap: 1}\n  b: {plan: p}\n",
    "in flow": PLANS + "customers: {a: {limits: {calls: {cap: 1}}}, b: {plan: p}}\n",
    "without customers": PLANS,
    "without a newline": PLANS + "customers: {}",
    "commented": """default_plan: p # here
plans: {p: {}}
customers: # who
  # the first
  a: # it is
    limits: # own
      # of calls
      calls: # so many
        cap: 1 # one
        # no more
  # and then
  b: {plan: p} # last
""",
    "with other limits": PLANS
    + """customers:
  a:
    limits:
      calls:
        cap: 1
        tiers:
          - {up_to: 5, price: 1.50}
          - price: 0.25
      more: {included: 7, tiers: [{price: 1.50}]}
    zone: Europe/Berlin
""",
    "beyond ASCII": PLANS + "# 🜁 Ünïcode 🜁\ncustomers:\n  ü🜁: {plan: p} # ü\n  a: {plan: p}\n",
    "windows": PLANS.replace("\n", "\r\n") + "customers:\r\n  a:\r\n    plan: p\r\n",
    "quoted": PLANS + 'customers:\n  "a": {"limits": {"calls": {"cap": 1}}}\n',
}

entries = st.fixed_dictionaries(
    {},
    optional={
        "cap": st.none() | st.integers(0, 10**15) | st.sampled_from(["0.5", "100.25"]),
        "included": st.integers(0, 10**6),
        "on_cap": st.sampled_from(["block", "allow", "warn"]),
        "grace_pct": st.sampled_from(["0", "2.5"]),
        "fail": st.sampled_from(["open", "closed"]),
        "shadow": st.booleans(),
        "thresholds": st.lists(st.sampled_from(["10", "20.5", "30"]), unique=True),
        "tiers": st.just([{"up_to": 10, "price": "0.5"}, {"price": 1}]),
    },
)
names = st.sampled_from(["a", "b", "ü🜁", "new", "a b", 'q"uote', "x: y # z", "null", "007"]) | st.text(
    st.characters(blacklist_categories=["C", "Z"]), min_size=1, max_size=20
)


def rest_of(catalog: Catalog, customer: str) -> Catalog:
    """All but this customer's limit on calls, who may be there or not."""
    known = catalog.customers.get(customer, Customer(customer, catalog.default_plan or ""))
    limits = {name: limit for name, limit in known.limits.items() if name != "calls"}
    return replace(catalog, customers={**catalog.customers, customer: replace(known, limits=limits)})


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=25, deadline=None)
@given(customer=names, entry=entries)
def test_it_means_what_was_said_and_nothing_else_changes(way: str, customer: str, entry: Any) -> None:
    before = CALLS + WAYS[way]
    after = with_override(before, customer, "calls", entry)
    old, new = parse_catalog(before), parse_catalog(after)
    said = parse_catalog(with_override(CALLS + WAYS["without customers"], customer, "calls", entry))
    assert new.limit_of(customer, "calls") == said.limit_of(customer, "calls")
    assert rest_of(new, customer) == rest_of(old, customer)

    again = with_override(after, customer, "calls", None)
    assert override_of(again, customer, "calls") is None
    assert rest_of(parse_catalog(again), customer) == rest_of(old, customer)


@settings(max_examples=50, deadline=None)
@given(customer=st.sampled_from(["cus_001", "cus_004", "cus_007", "new"]), entry=entries)
def test_every_other_line_stays_as_it_was_written(customer: str, entry: Any) -> None:
    # A plan's thresholds in percent need something to be percent of.
    assume(entry.get("cap", 1) is not None or "thresholds" in entry or "included" in entry)
    after = with_override(EXAMPLE, customer, "tokens_in", entry)
    left = set(EXAMPLE.splitlines()) - set(after.splitlines())
    assert len(left) <= 1
    assert [line for line in after.splitlines() if line.lstrip().startswith("#")] == [
        line for line in EXAMPLE.splitlines() if line.lstrip().startswith("#")
    ]


def test_numbers_are_written_as_they_came_and_never_through_floats() -> None:
    text = with_override(EXAMPLE, "cus_002", "calls", {"cap": "0.123456789012"})
    assert "cus_002: {limits: {calls: {cap: 0.123456789012}}, plan: pro" in text
    assert override_of(text, "cus_002", "calls") == {"cap": Plain("0.123456789012")}
    # A price of the other limits is still 1.50, though they are written anew.
    assert "price: 1.50" in with_override(CALLS + WAYS["with other limits"], "a", "calls", None)


@pytest.mark.parametrize("entry", [{"cap": -1}, {"capp": 1}, {"thresholds": ["x"]}, {"cap": "1e400"}])
def test_what_the_catalog_would_not_take_is_refused(entry: Any) -> None:
    with pytest.raises(CatalogError):
        with_override(EXAMPLE, "cus_001", "calls", entry)


def test_a_customer_without_a_plan_to_fall_back_on_is_refused() -> None:
    with pytest.raises(CatalogError):
        with_override(CALLS, "new", "calls", {"cap": 1})


def test_an_edit_that_went_astray_is_never_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the text is like, what comes of it is read again before it counts."""
    real = edit._with

    def astray(text: str, *given: Any) -> str:
        return real(text, *given).replace("cap: 5000000", "cap: 1")

    monkeypatch.setattr(edit, "_with", astray)
    with pytest.raises(CatalogError, match="cannot be changed in this text"):
        with_override(EXAMPLE, "cus_001", "calls", {"cap": 5})


@pytest.mark.parametrize("customer", ["👩‍👩‍👧", "a\u2028b\x7f\ufeff", 'a"b\\', "a\nb\x85"])
def test_a_limit_is_set_for_a_customer_of_any_name(customer: str) -> None:
    """The stream accepts these, and so does the catalog that is written for them."""
    text = with_override(CALLS + PLANS, customer, "calls", {"cap": 3})
    assert override_of(text, customer, "calls") == {"cap": Plain("3")}
    assert parse_catalog(text).limit_of(customer, "calls").cap == 3
