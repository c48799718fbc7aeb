"""Records of one kind by id, in order of creation, stored in the provider's storage."""

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from simulator.state.problems import missing
from simulator.state.storage import Storage

T = TypeVar("T", bound=msgspec.Struct)


class Shelf(Generic[T]):
    """A collection of records. `kind` names them in the database and in refusals."""

    def __init__(self, storage: Storage, kind: str, type: type[T]) -> None:
        self._storage, self._kind = storage, kind
        rows = [(id, msgspec.json.decode(body, type=type)) for id, body in storage.records(kind)]
        self._records: dict[str, T] = dict(sorted(rows, key=lambda row: getattr(row[1], "created_at", 0)))

    def put(self, id: str, record: T) -> T:
        """Store a new record, or a known one as it is now."""
        self._records[id] = record
        self._storage.put(self._kind, id, record)
        return record

    def remove(self, id: str) -> None:
        del self._records[id]
        self._storage.discard(self._kind, id)

    def get(self, id: str) -> T:
        """Return the record.

        Raises:
            Problem: status 404.
        """
        if (found := self._records.get(id)) is None:
            raise missing(self._kind, id)
        return found

    def find(self, id: str) -> T | None:
        return self._records.get(id)

    def __contains__(self, id: object) -> bool:
        return id in self._records

    def __iter__(self) -> Iterator[T]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)
