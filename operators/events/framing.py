"""Framing: the payloads of a poll as lines, one per payload, whatever line breaks their senders left in them."""

from collections.abc import Sequence
from itertools import accumulate

import msgspec

# Outside of texts, where JSON has neither, a line break is white space like any other.
_NO_BREAKS = bytes.maketrans(b"\r\n", b"  ")
# A line break inside a string is invalid JSON; replacing it with a space would turn it into a valid event.
_STILL_WRONG = bytes.maketrans(b"\r\n", b"\v\v")
_NULL = b"null"
_ANY = msgspec.json.Decoder(msgspec.Raw)
_RECORD = msgspec.json.Decoder(dict[str, msgspec.Raw] | list[msgspec.Raw])


def frame_messages(values: Sequence[bytes | None]) -> tuple[bytes, list[int] | None]:
    """Return the block of the messages' payloads, and the number of lines up to each message's end.

    The second value is None if each message has one line. A message has one payload, possibly written over several
    lines, or several, one per line (NDJSON). A message without a value becomes `null`, which is rejected because it is
    no event.
    """
    lines = [_NULL if value is None else value for value in values]
    block = b"\n".join(lines)
    if block.count(b"\n") < len(lines):
        return block, None
    parted = [_split_message(value) if b"\n" in value else [value] for value in lines]
    ends = list(accumulate(map(len, parted)))
    return b"\n".join(line for message in parted for line in message), ends


def _split_message(value: bytes) -> list[bytes]:
    """Return the payloads of a message with line breaks, at least one; an unreadable message stays whole.

    If the first line is JSON by itself, the whole message cannot be one value, so its lines are payloads. Otherwise it
    is one value over several lines, unless it is not JSON and some line alone is.
    """
    lines = [line for line in value.split(b"\n") if line.strip()]
    if len(lines) < 2:
        return lines or [b""]
    if _is_json(lines[0]):
        return lines
    if _is_json(value):
        return [value.translate(_NO_BREAKS)]
    return lines if any(map(_is_record, lines)) else [value.translate(_STILL_WRONG)]


def _is_json(text: bytes) -> bool:
    try:
        _ANY.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _is_record(line: bytes) -> bool:
    try:
        _RECORD.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
