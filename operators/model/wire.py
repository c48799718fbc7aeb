"""Records as lines of JSON, as files, terminals and other systems read them. Times are RFC 3339, UTC."""

from datetime import datetime, timedelta
from functools import lru_cache

import msgspec
from msgspec import UNSET, UnsetType

from tidegate.operators.model.records import Accepted, Alert, DeadLetter

# JSON has line breaks only outside of strings, where they are white space.
_NO_BREAKS = bytes.maketrans(b"\r\n", b"  ")

_EPOCH = datetime(1970, 1, 1)


def encode_alert(alert: Alert) -> bytes:
    """Return an alert as one line of JSON."""
    line = _AlertLine(
        alert.id,
        alert.kind,
        alert.state,
        alert.customer,
        alert.meter,
        format_instant(alert.period_start),
        format_instant(alert.period_end),
        alert.level,
        alert.limit,
        alert.total,
        format_instant(alert.at),
        alert.limit_version,
        alert.turn,
        alert.event_name or UNSET,
        alert.text or UNSET,
    )
    return _encode(line)


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """Return a dead letter as one line of JSON; the payload as text, or in base64 if it is not UTF-8."""
    fields = msgspec.structs.asdict(letter)
    payload = fields.pop("payload")
    try:
        fields["payload"] = payload.decode()
    except UnicodeDecodeError:
        fields["payload_base64"] = payload
    fields["received_at"] = format_instant(letter.received_at)
    return msgspec.json.encode(fields)


def encode_accepted(event: Accepted) -> bytes:
    """Return an accepted event as one line of JSON: its safe id, customer, time and lateness, and the event itself."""
    fields = {
        "event_id": event.id,
        "customer_id": event.customer,
        "timestamp": format_instant(event.at),
        "late": event.late,
        "event": msgspec.Raw(event.payload.translate(_NO_BREAKS)),
    }
    return msgspec.json.encode(fields)


def format_instant(at: int) -> str:
    """Return microseconds since the epoch as RFC 3339, UTC."""
    second, rest = divmod(at, 1_000_000)
    return f"{_format_second(second)}.{rest:06}Z"


# Many instants are of one second, or of one period's boundaries.
@lru_cache(maxsize=4096)
def _format_second(second: int) -> str:
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
