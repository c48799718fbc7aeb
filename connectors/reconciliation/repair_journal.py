"""The journal of repairs: what reconciliation is about to do, written before it does it, and what came of it.

Lines of JSON, only ever appended, each on disk before `plan` or `close` returns. An act is `planned`, then `made`, and
`done` once it is seen applied; or `refused` with the reason. An entry that is planned only was cut off by a kill, and
does it again: every act has an id of its cause, which makes it the same act whatever run or restart it comes from.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from tidegate.connectors.files.private_files import make_private_folder

State = Literal["planned", "made", "done", "refused"]


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line.

    `before` and `after` are our total and the provider's, `how` is what the act needs; `at` is RFC 3339.
    """

    at: str
    id: str
    state: State
    act: str
    customer: str
    meter: str
    period_start: str
    period_end: str
    why: str
    quantity: str = "0"
    ids: tuple[str, ...] = ()
    before: Mapping[str, str] = {}
    after: Mapping[str, str] = {}
    how: Mapping[str, str] = {}
    result: str = ""


class Journal:
    """The journal in one file; used by one thread of one process."""

    def __init__(self, path: Path) -> None:
        make_private_folder(path.parent)
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._last: dict[str, Entry] = {}
        whole = 0
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    entry = msgspec.json.decode(line, type=Entry)
                    self._last[entry.id] = entry
                    whole += len(line)
        # A kill may have cut the last line short: nothing was done on the strength of it.
        os.ftruncate(self._fd, whole)

    def entry(self, id: str) -> Entry | None:
        """Return an act as it stands."""
        return self._last.get(id)

    def unfinished(self) -> list[Entry]:
        """Return the acts that are planned, and neither done nor refused."""
        return [entry for entry in self._last.values() if entry.state == "planned"]

    def unseen(self) -> list[Entry]:
        """Return the acts that are made, and not yet seen applied."""
        return [entry for entry in self._last.values() if entry.state == "made"]

    def settled(self, act: str, customer: str, meter: str) -> Counter[str]:
        """Return how often each event was settled by this act, whatever the act's id, which older versions chose."""
        return Counter(
            id
            for entry in self._last.values()
            if (entry.act, entry.customer, entry.meter) == (act, customer, meter) and entry.state != "refused"
            for id in entry.ids
        )

    def all(self) -> list[Entry]:
        """Return every act as it stands."""
        return list(self._last.values())

    def of(self, customer: str, meter: str, period_start: str) -> list[Entry]:
        """Return the acts on one total, done or planned, in their current state."""
        return [
            entry
            for entry in self._last.values()
            if (entry.customer, entry.meter, entry.period_start) == (customer, meter, period_start)
        ]

    def plan(self, entry: Entry) -> None:
        """Record an act before it is done."""
        assert entry.state == "planned"
        self._write(entry)

    def close(self, entry: Entry, state: State, at: str, result: str) -> None:
        """Record the outcome of an act."""
        self._write(msgspec.structs.replace(entry, at=at, state=state, result=result))

    def end(self) -> None:
        os.close(self._fd)

    def _write(self, entry: Entry) -> None:
        line = msgspec.json.encode(entry) + b"\n"
        view: Any = memoryview(line)
        while view:
            view = view[os.write(self._fd, view) :]
        os.fsync(self._fd)
        self._last[entry.id] = entry
