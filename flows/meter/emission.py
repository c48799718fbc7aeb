"""What leaves a shard for the branches of the flow."""

from typing import NamedTuple

from tidegate.operators.metering.totals import Totals
from tidegate.operators.model.freshness import Heartbeat
from tidegate.operators.model.ports import Note, Settled
from tidegate.operators.model.records import Accepted, Alert, Counter, DeadLetter


class Emission(NamedTuple):
    """What leaves the keyed step at once."""

    totals: Totals
    counters: list[Counter]
    alerts: list[tuple[Alert, bytes]]
    """Each with its line of JSON."""
    dead: list[DeadLetter]
    accepted: list[Accepted]
    notes: list[Note]
    settled: list[Settled]
    received_at: int
    """When the first of the events behind these totals was received, and when the last of them happened, in µs since
    the epoch; 0 where there are none."""
    happened_at: int
    heartbeat: Heartbeat | None = None
