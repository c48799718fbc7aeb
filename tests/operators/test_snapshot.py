"""What a snapshot writes is in proportion to what changed since the last one."""

from datetime import timedelta

from operators.catalog import Catalog, Meter
from operators.decode import Decoder
from operators.ports import Payloads
from operators.shard import Shard

CATALOG = Catalog((Meter("calls", "call", "count"),))


class Metered:
    """A shard, and a snapshot after each of the polls that it was given."""

    def __init__(self) -> None:
        self.shard = Shard(0, CATALOG, timedelta(days=1), "event")
        self._decoder = Decoder(CATALOG, shards=1, clock="event")

    def poll(self, hour: int, customers: range) -> dict[str, int]:
        """Bytes per stream that a snapshot writes after one event of each customer in this hour."""
        lines = (
            f'{{"specversion":"1.0","id":"{hour}-{n}","source":"s","type":"call","subject":"cus_{n}",'
            f'"time":"2026-01-10T{hour:02}:00:00Z"}}'
            for n in customers
        )
        for _, chunk in self._decoder.decode(Payloads("\n".join(lines).encode(), 0, None, "")):
            self.shard.apply(chunk)
        self.shard.totals()
        return {frame.stream: len(frame.body) for frame in self.shard.delta()}


def test_hours_gone_by_cost_a_snapshot_nothing() -> None:
    """However many identities are remembered, only those of hours that were touched are written."""
    metered = Metered()
    first = metered.poll(8, range(500))
    later = metered.poll(9, range(500))
    (hour,) = first.keys() - {"state"}
    assert hour not in later and len(later) == 2
    assert hour in set(metered.shard.files)


def test_customers_who_did_nothing_cost_a_snapshot_nothing() -> None:
    metered = Metered()
    whole = metered.poll(8, range(500))["state"]
    metered.poll(9, range(500))
    assert metered.poll(9, range(500, 501))["state"] < whole / 20
    assert metered.poll(9, range(0))["state"] < whole / 20


def test_a_snapshot_without_news_leaves_identities_alone() -> None:
    metered = Metered()
    metered.poll(8, range(50))
    assert metered.poll(8, range(0)).keys() == {"state"}
