"""The embedded store's control log keeps the contract."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from connectors.sqlite_control import SqliteControl
from tests.connectors.control_contract import ControlContract, ControlPlace


@dataclass(frozen=True)
class FileControlPlace:
    path: Path

    def open_control(self) -> SqliteControl:
        return SqliteControl(self.path)


class TestSqliteControl(ControlContract):
    @contextmanager
    def fresh_control(self) -> Iterator[ControlPlace]:
        with tempfile.TemporaryDirectory() as folder:
            yield FileControlPlace(Path(folder, "new", "store.db"))
