"""Subscriptions that contradict each other, as notes that the API and the dashboard list, and as alerts."""

from collections.abc import Iterable
from typing import Any

import msgspec
from xxhash import xxh3_128_hexdigest

from tidegate.operators.billing.subscriptions import Conflict
from tidegate.operators.model.ports import Note, StoreReader
from tidegate.operators.model.wire import format_instant

KIND = "drift"
STATUS = "conflict"
NOTES_READ = 1000


def note_of(conflict: Conflict, at: int) -> Note:
    """Return the finding that names a conflict."""
    fields = {
        "status": STATUS,
        "customer": conflict.customer,
        "billed_as": conflict.billed_as,
        "subscriptions": conflict.subscriptions,
        "problem": conflict.why,
        "looked_at": format_instant(at),
    }
    return Note(KIND, _id(conflict.customer), conflict.customer, at, msgspec.json.encode(fields))


def over_of(customer: str, at: int) -> Note:
    """Return the note that takes a customer's conflict off the list."""
    return Note(KIND, _id(customer), customer, at, b"")


def known_in(notes: Iterable[Note]) -> dict[str, str]:
    """Return the conflicts among findings of all kinds: why, by customer."""
    found: dict[str, str] = {}
    for note in notes:
        body: dict[str, Any] = msgspec.json.decode(note.body)
        # Findings of a customer in conflict have the status as well, each of one total.
        if body.get("status") == STATUS and "subscriptions" in body:
            found[note.customer] = str(body.get("problem", ""))
    return found


def conflict_of(reader: StoreReader, customer: str) -> str:
    """Return why a customer's subscriptions contradict each other, "" where they do not."""
    return known_in(reader.notes(KIND, customer, NOTES_READ)).get(customer, "")


def alert_of(conflict: Conflict, at: int) -> tuple[str, bytes]:
    """Return an alert's id, the same for the same conflict, and its line of JSON."""
    id = xxh3_128_hexdigest(msgspec.json.encode(["conflict", *conflict]))
    line = {
        "id": id,
        "kind": "drift",
        "state": "raised",
        "customer": conflict.customer,
        "meter": "",
        "period_start": None,
        "period_end": None,
        "level": STATUS,
        "limit": "",
        "total": "",
        "at": format_instant(at),
        "limit_version": "",
        "turn": 0,
        "text": conflict.why,
    }
    return id, msgspec.json.encode(line)


def _id(customer: str) -> str:
    return f"{customer}/periods"
