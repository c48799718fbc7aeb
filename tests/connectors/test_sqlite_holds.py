"""Holds in the embedded store keep the contract; and what only a file can do wrong."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from connectors.sqlite import SqliteWriter
from connectors.sqlite_control import SqliteControl
from connectors.sqlite_holds import SqliteHolds
from tests.connectors.holds_contract import HoldsContract, Place


@dataclass(frozen=True)
class FilePlace:
    path: Path

    def open_writer(self) -> SqliteWriter:
        return SqliteWriter(self.path)

    def open_holds(self) -> SqliteHolds:
        return SqliteHolds(self.path)

    def open_control(self) -> SqliteControl:
        return SqliteControl(self.path)


class TestSqliteHolds(HoldsContract):
    @contextmanager
    def fresh(self) -> Iterator[Place]:
        with tempfile.TemporaryDirectory() as folder:
            place = FilePlace(Path(folder, "store.db"))
            with closing(place.open_writer()):
                pass
            yield place
