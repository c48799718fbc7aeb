"""What a changed boundary does to usage that is counted already, and to what comes after."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tidegate.operators.events.decode import Decoder
from tidegate.operators.metering.catalog_change import WindowMove
from tidegate.operators.metering.shard import Outcome, Shard
from tidegate.operators.metering.snapshot import Frame
from tidegate.operators.model.catalog import Catalog, Customer, Limit, Meter, Plan
from tidegate.operators.model.periods import Anchored, Billing, Calendar, Never, Policy
from tidegate.operators.model.ports import Adjustment, Payloads
from tidegate.operators.model.records import Total

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
METER = Meter("used", "use", "sum", "n")


def micros(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def months(every: int) -> Anchored:
    return Anchored(every, "month", NEW_YEAR)


def catalog_of(policy: Policy, zone: str = "UTC", cap: int | None = None) -> Catalog:
    limits = {} if cap is None else {"used": Limit(cap=Decimal(cap))}
    return Catalog((METER,), {"p": Plan("p", policy, zone, limits)}, default_plan="p")


class Flow:
    """A shard, what a store keeps of its totals, and its snapshots."""

    def __init__(self, catalog: Catalog, lateness: timedelta = DAY) -> None:
        self.catalog, self.lateness = catalog, lateness
        self.number = 0
        self.shard = Shard(0, catalog, lateness, "event")
        self.decoder = Decoder(catalog, shards=1, clock="event")
        self.store: dict[tuple[str, str, datetime], Total] = {}
        self.frames: list[Frame] = []
        self.serial = 0

    def use(self, at: datetime, n: int = 10, customer: str = "acme") -> None:
        self.send([(at, n, customer)])

    def send(self, events: Sequence[tuple[datetime, int, str]]) -> None:
        lines = []
        for at, n, customer in events:
            self.serial += 1
            event = {"event_id": str(self.serial), "customer_id": customer, "event_name": "use"}
            lines.append(json.dumps(event | {"timestamp": at.isoformat(), "metadata": {"n": n}}).encode())
        self.apply(b"\n".join(lines))

    def apply(self, block: bytes) -> list[Outcome]:
        outcomes = [self.shard.apply(chunk) for _, chunk in self.decoder.decode(Payloads(block, 0, None, ""))]
        self.write()
        return outcomes

    def write(self) -> None:
        """As a store does: what is newer, and ends that moved."""
        for total in self.shard.drain_totals():
            key = total.customer, total.window, datetime.fromtimestamp(total.start / 1e6, UTC)
            known = self.store.get(key)
            if known is None or known.version < total.version:
                assert known is None or not total.steady or int(known.total) <= int(total.total)
                self.store[key] = total
            elif known.version == total.version:
                self.store[key] = total

    def change(self, catalog: Catalog, *, live: bool = True, at: datetime = NEW_YEAR) -> None:
        self.catalog = catalog
        self.number += 1
        customers = self.decoder.customers if live else None
        self.decoder = Decoder(catalog, shards=1, clock="event", number=self.number, customers=customers)
        if live:
            self.shard.adopt_catalog(self.number, catalog, micros(at), micros(at))
        else:
            self.frames += self.shard.take_delta()
            self.shard = Shard.restore(
                0,
                catalog,
                self.lateness,
                "event",
                self.frames,
                number=self.number,
                applied_at=micros(at),
                received_at=micros(at),
            )
        self.write()

    def periods(self, customer: str = "acme") -> dict[datetime, tuple[int, datetime]]:
        """Totals and ends by start."""
        return {
            start: (int(total.total), datetime.fromtimestamp(total.end / 1e6, UTC))
            for (name, window, start), total in sorted(self.store.items())
            if (name, window) == (customer, "period")
        }

    def sweep(self, at: datetime) -> None:
        """Let others come along until the tables are swept; acme's now is confirmed."""
        self.send([(at, 0, "acme"), (at + timedelta(seconds=1), 0, "acme")])
        self.send([(at, 1, f"c{n}") for n in range(1500)])
        self.send([(at, 1, f"d{n}") for n in range(3000)])
        self.frames += self.shard.take_delta()


@pytest.fixture(params=[True, False], ids=["live", "restart"])
def live(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def day(month: int, day: int = 1, hour: int = 0) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=UTC)


def test_a_period_that_ends_later_goes_on(live: bool) -> None:
    """A month that becomes a quarter: its total grows, with its present end, and the end is written at once."""
    flow = Flow(catalog_of(months(1)))
    flow.use(day(1, 5))
    flow.change(catalog_of(months(3)), live=live)
    assert flow.periods() == {day(1): (10, day(4))}
    flow.use(day(3, 20))
    assert flow.periods() == {day(1): (20, day(4))}


def test_a_period_that_ends_later_is_held_until_its_present_end(live: bool) -> None:
    """The first end is past, and the tables are swept meanwhile."""
    flow = Flow(catalog_of(months(1)))
    flow.use(day(1, 5))
    flow.change(catalog_of(months(3)), live=live)
    flow.use(day(3, 20))
    flow.sweep(day(3, 20))
    flow.use(day(3, 25))
    assert flow.periods() == {day(1): (30, day(4))}


def test_a_period_that_ends_sooner_keeps_what_it_counted(live: bool) -> None:
    """Also what was used after its present end; what is used from now on counts where it belongs now."""
    flow = Flow(catalog_of(months(3)))
    flow.use(day(1, 5))
    flow.use(day(2, 20))
    flow.change(catalog_of(months(1)), live=live)
    flow.use(day(2, 21))
    flow.use(day(2, 20, 23))
    assert flow.periods() == {day(1): (20, day(2)), day(2): (20, day(3))}


def test_a_period_that_was_cut_off_keeps_its_end(live: bool) -> None:
    """A new period begins inside of it; what is late goes where the present boundaries say."""
    flow = Flow(catalog_of(months(1)), lateness=35 * DAY)
    flow.use(day(1, 20))
    flow.change(catalog_of(Anchored(1, "month", day(1, 15))), live=live)
    flow.use(day(1, 21))
    flow.use(day(1, 10))
    assert flow.periods() == {
        day(1) - 17 * DAY: (10, day(1, 15)),
        day(1): (10, day(2)),
        day(1, 15): (10, day(2, 15)),
    }


def test_boundaries_that_are_put_back_find_their_windows_again(live: bool) -> None:
    """A zone that was entered by mistake costs nothing."""
    flow = Flow(catalog_of(Calendar("day")))
    flow.use(day(1, 5, 20))
    flow.change(catalog_of(Calendar("day"), "Asia/Kathmandu"), live=live)
    flow.use(day(1, 5, 20))
    assert flow.periods() == {
        day(1, 5): (10, day(1, 6)),
        datetime(2026, 1, 5, 18, 15, tzinfo=UTC): (10, datetime(2026, 1, 6, 18, 15, tzinfo=UTC)),
    }
    flow.change(catalog_of(Calendar("day")), live=live)
    flow.use(day(1, 5, 21))
    assert flow.periods()[day(1, 5)] == (20, day(1, 6))


def test_an_edge_to_come_ends_the_open_period(live: bool) -> None:
    """After a subscription's last known edge a period has no end, until the next edge is pulled."""
    flow = Flow(catalog_of(Billing((day(1),))))
    flow.use(day(1, 5))
    flow.change(catalog_of(Billing((day(1), day(2)))), live=live)
    assert flow.periods() == {day(1): (10, day(2))}


def test_a_period_of_before_all_time_is_not_todays(live: bool) -> None:
    """1970 is a midnight, and yet no day of a calendar is the period that never ends."""
    flow = Flow(catalog_of(Never()))
    flow.use(day(1, 5))
    flow.change(catalog_of(Calendar("day")), live=live)
    assert [end.year for _, end in flow.periods().values()] == [9999]


@pytest.mark.parametrize("window", ["day", "hour"])
def test_buckets_of_a_zone_that_changed_keep_their_ends(window: str, live: bool) -> None:
    """And do so through further restarts, changes and a store that was lost."""
    flow = Flow(catalog_of(Calendar("month")))
    flow.use(day(1, 5, 20))
    before = {key: total for key, total in flow.store.items() if key[1] == window}
    flow.change(catalog_of(Calendar("month"), "Asia/Kathmandu"), live=live)
    flow.change(catalog_of(Calendar("month"), "Asia/Tokyo"), live=live)
    flow.change(flow.catalog, live=False)
    flow.store.clear()
    flow.shard.republish()
    flow.write()
    assert {key: total for key, total in flow.store.items() if key[1] == window} == before


def test_a_day_that_a_change_of_the_clock_shortens_ends_as_the_zone_has_it(live: bool) -> None:
    """On 29 March a day of London begins as one of UTC, and ends an hour before; counted on, it goes on."""
    flow = Flow(catalog_of(Calendar("month"), "Europe/London"), lateness=HOUR)
    noon = datetime(2026, 3, 29, 12, tzinfo=UTC)
    flow.use(noon)
    key = "acme", "day", noon - 12 * HOUR
    assert flow.store[key].end == micros(noon + 11 * HOUR)
    flow.sweep(noon + 11 * HOUR + timedelta(minutes=59))
    flow.change(catalog_of(Calendar("month"), "UTC"), live=live)
    flow.use(noon + 11 * HOUR + timedelta(minutes=30))
    assert (flow.store[key].end, flow.store[key].total) == (micros(noon + 12 * HOUR), 20)


def test_what_is_still_held_goes_on_where_a_year_takes_in_its_months(live: bool) -> None:
    """In June, January is swept for no one: a plan by the year continues it."""
    flow = Flow(catalog_of(months(1)))
    flow.use(day(1, 5))
    flow.use(day(6, 5))
    flow.sweep(day(6, 5))
    flow.change(catalog_of(months(12)), live=live)
    flow.use(day(6, 6))
    year = datetime(2027, 1, 1, tzinfo=UTC)
    assert flow.periods() == {day(1): (20, year), day(6): (10, day(7))}


def test_what_was_let_go_of_begins_again_above_its_versions(live: bool) -> None:
    """A store would turn a version down that it has; what it gets is newer, and true from now on."""
    flow = Flow(catalog_of(Calendar("hour")), lateness=HOUR)
    for _ in range(5):
        flow.use(day(1, 5))
    flow.use(day(1, 20))
    flow.sweep(day(1, 20))
    flow.change(catalog_of(Anchored(30, "day", day(1, 5))), live=live)
    flow.use(day(1, 20, 1), n=7)
    assert flow.periods()[day(1, 5)] == (7, day(2, 4))
    assert flow.store["acme", "period", day(1, 5)].version == 6
    flow.change(flow.catalog, live=False)
    flow.use(day(1, 20, 1), n=7)
    assert flow.periods()[day(1, 5)] == (14, day(2, 4))


def test_an_adjustment_of_what_was_let_go_of_is_newer_too(live: bool) -> None:
    flow = Flow(catalog_of(Calendar("hour")), lateness=HOUR)
    for _ in range(5):
        flow.use(day(1, 5))
    flow.use(day(1, 20))
    flow.sweep(day(1, 20))
    flow.change(catalog_of(Anchored(30, "day", day(1, 5))), live=live)
    adjustment = Adjustment(
        id="1", customer="acme", meter="used", at=micros(day(1, 19)), quantity="3", reason="", by=""
    )
    assert flow.shard.adjust(adjustment, 0)[1] is None
    flow.write()
    assert flow.periods()[day(1, 5)] == (3, day(2, 4))
    assert flow.store["acme", "period", day(1, 5)].version == 6


def test_a_period_without_an_end_that_nobody_reaches_is_let_go_of() -> None:
    """Each edge that is replaced would else leave a window for ever."""
    flow = Flow(catalog_of(Billing((day(1),))))
    flow.use(day(1, 5))
    flow.change(catalog_of(Billing((day(1, 2),))))
    later = day(1, 5) + 500 * DAY
    flow.use(later)
    flow.sweep(later)
    assert len(flow.shard.periods) == 4501
    flow.use(later, n=5)
    assert flow.periods()[day(1, 2)][0] == 15


def test_alerts_and_late_classes_go_by_the_present_end(live: bool) -> None:
    flow = Flow(catalog_of(months(1), cap=15), lateness=35 * DAY)
    flow.use(day(1, 5))
    flow.use(day(2, 5))
    flow.use(day(2, 5, 1), n=0)
    flow.use(day(2, 5, 1) + timedelta(seconds=1), n=0)
    flow.change(catalog_of(months(3), cap=15), live=live)
    (outcome,) = flow.apply(
        b'{"event_id":"x","customer_id":"acme","event_name":"use",'
        b'"timestamp":"2026-01-20T00:00:00Z","metadata":{"n":10}}'
    )
    assert [(a.kind, a.period_start, a.period_end) for a in outcome.alerts] == [
        ("cap_reached", micros(day(1)), micros(day(4)))
    ]
    assert [event.late for event in outcome.accepted] == ["late_open"]


def test_a_lowered_cap_is_reached_by_the_period_that_holds_now(live: bool) -> None:
    """Not by the one that began last: a window of the boundaries of before may have."""
    flow = Flow(catalog_of(months(1), cap=2000))
    flow.use(day(2, 5), n=900)
    flow.change(catalog_of(Anchored(12, "month", day(1, 15)), cap=2000), live=live)
    flow.use(day(2, 6), n=1700)
    flow.change(catalog_of(Anchored(12, "month", day(1, 15)), cap=1500), live=live, at=day(2, 7))
    (alert,) = flow.shard.drain_reviewed()
    year = datetime(2027, 1, 15, tzinfo=UTC)
    assert (alert.kind, alert.total, alert.at) == ("cap_reached", "1700", micros(day(2, 7)))
    assert (alert.period_start, alert.period_end) == (micros(day(1, 15)), micros(year))


def test_a_lowered_cap_is_not_reached_by_a_period_that_is_over(live: bool) -> None:
    flow = Flow(catalog_of(months(1), cap=2000))
    flow.use(day(1, 5), n=1900)
    flow.use(day(2, 5), n=100)
    flow.change(catalog_of(months(1), cap=1500), live=live, at=day(2, 6))
    assert flow.shard.drain_reviewed() == []


def test_a_cap_that_was_lowered_before_is_reached_once_the_period_holds_now(live: bool) -> None:
    """Who is denied sends nothing, so no reading would ever show it."""
    flow = Flow(catalog_of(months(1), cap=2000))
    flow.use(day(1, 5), n=1900)
    flow.use(day(2, 5), n=100)
    flow.change(catalog_of(months(1), cap=1500), live=live, at=day(2, 6))
    flow.change(catalog_of(months(3), cap=1500), live=live, at=day(2, 6))
    assert [(a.kind, a.total, a.period_start) for a in flow.shard.drain_reviewed()] == [
        ("cap_reached", "1900", micros(day(1)))
    ]
    flow.change(flow.catalog, live=live, at=day(2, 6))
    assert flow.shard.drain_reviewed() == []


def test_by_the_wall_clock_an_idle_flow_knows_that_a_period_is_over() -> None:
    """Its last event may be a month old."""
    catalog = catalog_of(months(1), cap=2000)
    shard = Shard(0, catalog, DAY, "wall")
    line = (
        b'{"event_id":"x","customer_id":"acme","event_name":"use",'
        b'"timestamp":"2026-01-20T00:00:00Z","metadata":{"n":1900}}'
    )
    for _, chunk in Decoder(catalog, shards=1, clock="wall").decode(
        Payloads(line, micros(day(1, 20)), None, "")
    ):
        shard.apply(chunk)
    shard.adopt_catalog(1, catalog_of(months(1), cap=1500), micros(day(1, 25)), micros(day(2, 2)))
    assert shard.drain_reviewed() == []


def test_what_moved_is_told_once_for_the_audit_log(live: bool) -> None:
    """With the customer, the window and both ends; other customers are left alone."""
    flow = Flow(catalog_of(months(1)))
    flow.use(day(1, 5))
    flow.use(day(1, 5), customer="other")
    own = {"acme": Customer("acme", "p", period=months(3))}
    flow.change(Catalog((METER,), flow.catalog.plans, own, "p"), live=live)
    (moves,) = flow.shard.drain_moves()
    assert (moves.moved, moves.cut_off) == (1, 0)
    assert moves.examples == (WindowMove("acme", "period", micros(day(1)), micros(day(2)), micros(day(4))),)
    assert flow.shard.drain_moves() == []


def test_a_period_that_was_cut_off_is_told_too(live: bool) -> None:
    flow = Flow(catalog_of(months(1)))
    flow.use(day(1, 20))
    flow.change(catalog_of(Anchored(1, "month", day(1, 15))), live=live)
    (moves,) = flow.shard.drain_moves()
    assert (moves.moved, moves.cut_off) == (0, 1)
    assert moves.examples == (WindowMove("acme", "period", micros(day(1)), micros(day(2)), micros(day(2))),)
