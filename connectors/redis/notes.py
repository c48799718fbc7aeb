"""Notes in Redis: per kind a hash of notes and a sorted set of their times, and one for each customer.

They lie in the slot of the control log. The oldest go when there are more than NOTES_KEPT of a kind; a customer's set
names NOTES_OF_ONE at most, and some that are gone already.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tidegate.connectors.redis.client import Command, Redis
from tidegate.connectors.redis.key_layout import Keys
from tidegate.connectors.redis.scripts.common import NOTE, NOTES
from tidegate.operators.model.ports import Note

NOTES_KEPT: Final = 50_000
NOTES_OF_ONE: Final = 1_000
CUSTOMER_ENDS_MS: Final = 400 * 86_400_000

# The body as text, as Redis' own MessagePack knows no bytes.
_pack = msgspec.msgpack.encode
_unpack = msgspec.msgpack.Decoder(tuple[str, int, str]).decode


class Notes:
    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys

    def write(self, notes: Sequence[Note], now: int) -> list[Note]:
        """Those that are news. `now` is in µs since the epoch."""
        told = self._redis.run([self._command(note, now // 1000 + CUSTOMER_ENDS_MS) for note in notes])
        return [note for note, news in zip(notes, told, strict=True) if news]

    def read(self, kind: str, customer: str | None, limit: int) -> list[Note]:
        """Return the newest notes of a kind first."""
        bodies, times, of_one = self._names(kind, customer or "")
        keys = [bodies, times if customer is None else of_one]
        ((ids, packed),) = self._redis.run([NOTES.call(self._keys.control_slot, keys, limit)])
        found = [
            (id.decode(), *_unpack(note)) for id, note in zip(ids, packed, strict=True) if note is not None
        ]
        return [
            Note(kind, id, of, at, body.encode())
            for id, of, at, body in found
            if customer is None or of == customer
        ]

    def _command(self, note: Note, ends: int) -> Command:
        packed = _pack((note.customer, note.at, note.body.decode()))
        given: tuple[Any, ...] = (note.id, note.at, note.body, packed, NOTES_KEPT, NOTES_OF_ONE, ends)
        return NOTE.call(self._keys.control_slot, self._names(note.kind, note.customer), *given)

    def _names(self, kind: str, customer: str) -> list[str]:
        # With its length, so that no kind and customer together look like another kind.
        name = f"{len(kind)}:{kind}"
        return [self._keys.control(f"{part}:{name}") for part in ("notes", "note-times")] + [
            self._keys.control(f"notes-of:{name}:{customer}")
        ]
