"""Records as lines of JSON, as files, terminals and other systems read them. Times are RFC 3339, UTC."""

from datetime import datetime, timedelta
from functools import lru_cache

import msgspec

from operators.records import Accepted, Alert, DeadLetter

# Outside of texts, where JSON has neither, a line break is white space like any other.
_NO_BREAKS = bytes.maketrans(b"\r\n", b"  ")

_EPOCH = datetime(1970, 1, 1)


def encode_alert(alert: Alert) -> bytes:
    """An alert as one line of JSON."""
    fields = msgspec.structs.asdict(alert)
    fields["period_start"], fields["period_end"] = _edge(alert.period_start), _edge(alert.period_end)
    fields["at"] = instant(alert.at)
    return msgspec.json.encode(fields)


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
    return f"{(_EPOCH + timedelta(microseconds=at)).isoformat(timespec='microseconds')}Z"


# Many alerts are of one period.
_edge = lru_cache(maxsize=1024)(instant)
