"""Records that leave the metering step: totals, alerts, dead letters and accepted events, as values.

Times are integers: microseconds since the Unix epoch, UTC. Quantities are exact decimal strings or integers, never
binary floats.
"""

from typing import Literal, NamedTuple

import msgspec

Window = Literal["period", "day", "hour"]


class Total(NamedTuple):
    """The absolute total of one customer, meter and window after `version` changes.

    `version` grows by one with each change to this window and repeats exactly on replay. `steady` says that events
    never make this total smaller (all aggregations but `min` and `last`), so that a smaller one can only be an older
    reading. `total` is an int if it is whole and fits 64 bits, else decimal text.
    """

    customer: str
    window: Window
    meter: str
    start: int
    end: int
    total: int | str
    version: int
    events: int
    as_of: int
    late: int
    corrected: int
    adjustment: int | str
    steady: bool


def is_requested(total: Total, since: int) -> bool:
    """Return whether to include a total in a query for windows after `since` (µs), 0 for all.

    All periods are included: the catalog determines where a period ends now, and a store may learn it later.
    """
    return not since or total.window == "period" or total.end > since


class Counter(NamedTuple):
    """How many events of a shard ended one way, since the first start. It never falls.

    Names: `events`, `rejects`, `too_late`, `duplicates`, `conflicts`, `accepted`; of those `metered`, `unmetered` and
    `unclassified` (by a version that did not distinguish them), `unmetered:REASON`; and per meter `matching:METER`,
    `counted:METER`, `corrected:METER`, `not_a_number:METER`.
    """

    shard: int
    name: str
    value: int


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One change of state of one rule; `id` repeats on replay, so that receivers drop repeats.

    Only alerts of kind `unmetered` have `event_name` and `text`; their `level` is the reason, and they have neither
    customer nor period.
    """

    id: str
    kind: Literal[
        "threshold",
        "cap_reached",
        "cap_released",
        "overage_started",
        "overage_ended",
        "correction",
        "unmetered",
    ]
    state: Literal["raised", "resolved", "announced"]
    customer: str
    meter: str
    period_start: int
    period_end: int
    level: str
    limit: str | None
    total: str
    at: int
    limit_version: str
    turn: int
    event_name: str = ""
    text: str = ""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was not metered, complete, with the reason. `id` repeats on replay.

    `payload` is the event's own bytes; `detail` says what was expected and found.
    """

    id: str
    reason: str
    detail: str
    payload: bytes
    received_at: int


class Accepted(NamedTuple):
    """An accepted event for billing: a safe id, its time and its own bytes.

    The id is 32 hex digits of the identity, and the event's hour (UTC). A replay repeats both. An identity that is
    accepted again after it was forgotten has a later hour, and so is two events for the billing provider too.
    """

    id: str
    customer: str
    at: int
    late: Literal["on_time", "late_open", "late_closed"]
    payload: bytes
