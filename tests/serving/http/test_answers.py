"""What the service says of a decision, and of a customer's usage."""

from decimal import Decimal

from tidegate.operators.gate.decision import Decision
from tidegate.operators.model.catalog import VersionedCatalog
from tidegate.operators.model.periods import HOUR
from tidegate.operators.model.ports import StoredTotal
from tidegate.operators.model.records import Total
from tidegate.serving.http.readers.usage import BUCKETS_MAX, usage_body
from tidegate.serving.http.serialization import denied, rate_headers
from tidegate.settings.catalog.file import parse_catalog

NOW = 1_795_900_000_000_000 // HOUR * HOUR
SECOND = 1_000_000


def held_back(retry_at: int | None) -> Decision:
    """A denial with all of a cap of 100 held, in a period that ends in an hour."""
    return Decision(
        customer="acme",
        meter="tokens",
        allowed=False,
        reason="cap_reached",
        used=Decimal(0),
        reserved=Decimal(100),
        limit=Decimal(100),
        remaining=Decimal(0),
        resets_at=NOW + HOUR,
        retry_at=retry_at,
    )


def test_a_client_comes_back_when_the_hold_in_its_way_ends() -> None:
    headers = dict(rate_headers(held_back(NOW + 10 * SECOND - 1), NOW))
    assert headers["retry-after"] == "10"
    assert headers["ratelimit"] == '"tokens";r=0;t=10'
    assert dict(rate_headers(held_back(None), NOW))["retry-after"] == "3600"


def test_a_denial_says_what_is_reserved() -> None:
    assert denied(held_back(NOW), NOW).detail == "tokens: cap_reached, 0 of 100 used, 100 reserved"


def test_of_too_many_buckets_the_oldest_of_every_meter_are_left_out() -> None:
    """A chart that lacks hours is one thing, one that lacks meters another."""
    meters = [f"m{i:02}" for i in range(30)]
    catalog = parse_catalog(
        "meters:\n"
        + "".join(f"  - {{name: {m}, event_name: e, aggregation: {{type: count}}}}\n" for m in meters)
        + "plans: {p: {}}\ndefault_plan: p\n"
    )
    stored = [
        StoredTotal(
            Total("acme", "hour", meter, NOW - h * HOUR, NOW - h * HOUR + HOUR, 1, 1, 1, NOW, 0, 0, 0, True),
            NOW,
        )
        for meter in meters
        for h in range(840, 0, -1)
    ]
    body = usage_body(
        VersionedCatalog(1, catalog),
        "acme",
        stored,
        None,
        [],
        unmetered=[],
        now=NOW,
        at=NOW,
        hours=840,
        days=0,
    )
    starts = {meter: {b.start for b in body.hours if b.meter == meter} for meter in meters}
    assert BUCKETS_MAX - 30 < len(body.hours) <= BUCKETS_MAX
    assert len(starts["m00"]) == len(body.hours) / 30
    assert all(of_one == starts["m00"] for of_one in starts.values())
