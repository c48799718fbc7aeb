"""Control records as every store keeps them, in JSON, read so that none can end the flow."""

from typing import Any, Final

import msgspec

from tidegate.operators.model.ports import ControlRecord, Unread

_RECORD: Final = msgspec.json.Decoder(ControlRecord)
SHOWN_MAX: Final = 200


def read_record(body: Any) -> ControlRecord | Unread:
    """Return the record, or why it can't be read: another version's kind or fields, or no JSON at all."""
    try:
        record: ControlRecord = _RECORD.decode(body)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        shown = body.decode(errors="replace") if isinstance(body, bytes) else repr(body)
        return Unread(f"{error}: {shown[:SHOWN_MAX]!r}")
    return record
