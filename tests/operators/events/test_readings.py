"""What meters read, whatever their properties are called."""

import json
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.operators.strategies import NOON
from tidegate.operators.events.decode import Decoder
from tidegate.operators.events.readings import NameReader
from tidegate.operators.model.catalog import Condition, Filter, Meter
from tidegate.operators.model.ports import Payloads
from tidegate.settings.catalog.file import CatalogError, parse_catalog
from tidegate.settings.catalog.yaml_nodes import quoted

ODD = [
    'a"b',
    "a\\b",
    '"',
    "\\",
    "a.b",
    "class",
    "__init__",
    "field_0",
    "a\u200db",
    "é",
    "👩‍👧",
    "key",
    "x" * 100,
]
KEYS = st.one_of(st.sampled_from(ODD), st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))


@given(st.lists(KEYS, min_size=1, max_size=4, unique=True), st.booleans())
def test_a_property_of_any_name_is_read(keys: list[str], escaped: bool) -> None:
    """A struct of msgspec refuses some names, which ended the flow at every start."""
    meters = [(i, Meter(f"m{i}", "llm", "sum", key)) for i, key in enumerate(keys)]
    name = NameReader("llm", [*meters, (9, Meter("n", "llm", "count", None, _present(keys[0])))])
    data = {key: i for i, key in enumerate(keys)} | {"other": [1]}
    raws = [msgspec.Raw(json.dumps(one, ensure_ascii=escaped).encode()) for one in (data, {}, data)]
    found = name.build_columns(name.decode_properties([*raws, msgspec.Raw(b"null")]))
    for i, key in enumerate(keys):
        assert found(key) == [i, msgspec.UNSET, i, msgspec.UNSET]


def _present(key: str) -> Filter:
    return Filter("and", (Condition(key, "greater_than_or_equals", 0),))


@pytest.mark.parametrize("key", ['a"b', "a\\b"])
def test_numbers_keep_their_digits_under_an_odd_name(key: str) -> None:
    name = NameReader("llm", [(0, Meter("m", "llm", "sum", key))])
    raw = json.dumps({key: 0}).replace("0", "0.10000000000000000000001").encode()
    assert name.build_columns(name.decode_properties([msgspec.Raw(raw)]))(key) == [
        Decimal("0.10000000000000000000001")
    ]


TEXT = st.text(min_size=1, max_size=12)


@given(TEXT, TEXT, TEXT, TEXT)
def test_every_catalog_that_is_accepted_can_be_decoded_under(
    event: str, key: str, customer: str, plan: str
) -> None:
    """Whatever text stands in its names, quotes, backslashes and joiners too."""
    text = (
        f"meters: [{{name: m, event_name: {quoted(event)}, aggregation: {{type: sum, key: {quoted(key)}}}}}]\n"
        f"plans: {{{quoted(plan)}: {{}}}}\ncustomers: {{{quoted(customer)}: {{plan: {quoted(plan)}}}}}\n"
    )
    try:
        catalog = parse_catalog(text)
    except CatalogError as error:
        assert "printable" in str(error)
        return
    assert (catalog.meters[0].event_name, catalog.meters[0].key) == (event, key)
    assert (*catalog.customers, *catalog.plans) == (customer, plan)
    sent = {"event_id": "1", "customer_id": customer, "event_name": event, "metadata": {key: 7}}
    payloads = Payloads(json.dumps(sent).encode(), NOON, NOON, "test")
    ((_, chunk),) = Decoder(catalog, shards=1, clock="event").decode(payloads)
    assert not chunk.rejects and chunk.names == [customer]
    assert chunk.readings.hi.tolist() == [7]


EMOJI = "👩‍👩‍👧‍👦"


@pytest.mark.parametrize("customer", [EMOJI, "a\tb", "\u202eacme", "a\u2028b", "\x7f", "\ufeff", "'\"\\"])
def test_a_catalog_names_every_customer_that_a_stream_can(customer: str) -> None:
    text = "meters: [{name: m, event_name: e, aggregation: {type: count}}]\nplans: {p: {}}\n"
    assert list(parse_catalog(f"{text}customers: {{{quoted(customer)}: {{plan: p}}}}").customers) == [
        customer
    ]
