"""Records as lines of JSON, as files, terminals and other systems read them. Times are RFC 3339, UTC."""

from datetime import datetime, timedelta
from functools import lru_cache

import msgspec
from msgspec import UNSET, UnsetType

from tidegate.operators.model.records import Accepted, Alert, DeadLetter

# Outside of texts, where JSON has neither, a line break is white space like any other.
_NO_BREAKS = bytes.maketrans(b"\r\n", b"  ")

_EPOCH = datetime(1970, 1, 1)


def encode_alert(alert: Alert) -> bytes:
    """An alert as one line of JSON."""
    line = _AlertLine(
        alert.id,
        alert.kind,
        alert.state,
        alert.customer,
        alert.meter,
        instant(alert.period_start),
        instant(alert.period_end),
        alert.level,
        alert.limit,
        alert.total,
        instant(alert.at),
        alert.limit_version,
        alert.turn,
        alert.event_name or UNSET,
        alert.text or UNSET,
    )
    return _encode(line)


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """A dead letter as one line of JSON; the payload as text, or in base64 where it is not UTF-8."""
    fields = msgspec.structs.asdict(letter)
    payload = fields.pop("payload")
    try:
        fields["payload"] = payload.decode()
    except UnicodeDecodeError:
        fields["payload_base64"] = payload
    fields["received_at"] = instant(letter.received_at)
    return msgspec.json.encode(fields)


def encode_accepted(event: Accepted) -> bytes:
    """An accepted event as one line of JSON: its safe id, its customer, time and lateness, and the event itself."""
    fields = {
        "event_id": event.id,
        "customer_id": event.customer,
        "timestamp": instant(event.at),
        "late": event.late,
        "event": msgspec.Raw(event.payload.translate(_NO_BREAKS)),
    }
    return msgspec.json.encode(fields)


def instant(at: int) -> str:
    """Microseconds since the epoch as RFC 3339, UTC."""
    second, rest = divmod(at, 1_000_000)
    return f"{_second(second)}.{rest:06}Z"


# Many are of one second, or of one period's edges.
@lru_cache(maxsize=4096)
def _second(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat()


class _AlertLine(msgspec.Struct):
    """An alert as it is written."""

    id: str
    kind: str
    state: str
    customer: str
    meter: str
    period_start: str
    period_end: str
    level: str
    limit: str | None
    total: str
    at: str
    limit_version: str
    turn: int
    event_name: str | UnsetType
    text: str | UnsetType


_encode = msgspec.json.Encoder().encode
