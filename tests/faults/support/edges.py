"""Where a run's input lies, where its alerts and dead letters go, and what its store is: files, or real servers."""

import base64
import json
import re
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from tidegate.connectors.redis.write_numbers import Numbers
from tidegate.connectors.sqlite.store import SqliteReader
from tidegate.operators.model.ports import Resend, StoreReader
from tidegate.settings.addresses.stores import Store

_STORE: TypeAdapter[Any] = TypeAdapter(Store)


class Dead(NamedTuple):
    """A dead letter as it arrived; the payload as text, in base64 where it is none."""

    id: str
    reason: str
    payload: str


class Edges(ABC):
    """Input and outputs of one run after another."""

    @abstractmethod
    def prepare(self, folder: Path, parts: list[list[bytes]]) -> dict[str, str]:
        """Puts the lines of each part where a flow in `folder` reads them; the settings that say so."""

    @abstractmethod
    def append(self, folder: Path, parts: list[list[bytes]]) -> None:
        """Put further lines behind those of each part."""

    @abstractmethod
    def alerts(self, folder: Path) -> list[bytes]:
        """The alerts that the run in `folder` left."""

    @abstractmethod
    def dead(self, folder: Path) -> list[Dead]:
        """Its dead letters."""


class Files(Edges):
    """Everything in files of the run's folder."""

    def prepare(self, folder: Path, parts: list[list[bytes]]) -> dict[str, str]:
        self.append(folder, parts)
        return {
            "SOURCE": "file:in-*.ndjson" if len(parts) > 1 else "file:in-0.ndjson",
            "ALERTS": "file:alerts.ndjson",
            "DEAD_LETTERS": "file:dead.ndjson",
        }

    def append(self, folder: Path, parts: list[list[bytes]]) -> None:
        for number, lines in enumerate(parts):
            with (folder / f"in-{number}.ndjson").open("ab") as file:
                file.write(b"".join(line + b"\n" for line in lines))

    def alerts(self, folder: Path) -> list[bytes]:
        return lines_of(folder / "alerts.ndjson")

    def dead(self, folder: Path) -> list[Dead]:
        letters = map(json.loads, lines_of(folder / "dead.ndjson"))
        return [
            Dead(each["id"], each["reason"], each.get("payload", each.get("payload_base64")))
            for each in letters
        ]


class Stores(ABC):
    """Stores for one run after another."""

    @abstractmethod
    def address(self, folder: Path) -> str:
        """The address of the store of the run in `folder`, for a flow that runs there."""

    @abstractmethod
    def reader(self, folder: Path) -> StoreReader:
        """A reader of it; StoreError where it is not there yet."""


class SqliteFiles(Stores):
    def address(self, folder: Path) -> str:
        return "sqlite:store.db"

    def reader(self, folder: Path) -> StoreReader:
        return SqliteReader(folder / "store.db")


class RedisKeys(Stores):
    """One server, a prefix per run; `through` is how the flow reaches it, with these options of the address."""

    def __init__(self, port: int, through: str | None = None, **options: str) -> None:
        self._place = f"127.0.0.1:{port}"
        self._through = through or self._place
        # The traffic may lie years back, and windows are to be there all the same.
        self._options = {"hours": "3660d", "days": "3660d", "periods": "3660d", **options}

    def address(self, folder: Path) -> str:
        return self._address(self._through, folder, self._options)

    def reader(self, folder: Path) -> StoreReader:
        reader: StoreReader = _STORE.validate_python(self._address(self._place, folder, {})).open_reader()
        return reader

    def resends(self, folder: Path) -> int:
        """How often all totals were asked for again."""
        with closing(
            _STORE.validate_python(self._address(self._place, folder, {})).open_control()
        ) as control:
            return sum(isinstance(one.record, Resend) for one in control.after(""))

    def last_acknowledged(self, folder: Path) -> int:
        """When the flow there made the last write that it knows to be in the store, in µs; 0 where there is none."""
        with closing(Numbers(folder / "state" / "store" / "worker-0", known=True)) as numbers:
            return max(numbers.last)

    def _address(self, place: str, folder: Path, options: dict[str, str]) -> str:
        given = {"prefix": re.sub("[^a-z0-9-]", "-", folder.name), **options}
        return f"redis://{place}?{'&'.join(f'{name}={value}' for name, value in given.items())}"


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file, none if there is no file; a torn line is an error."""
    if not path.exists():
        return []
    text = path.read_bytes()
    assert not text or text.endswith(b"\n"), f"{path.name}: the last line is torn"
    return text.split(b"\n")[:-1]


def shown(payload: bytes) -> str:
    """A payload as a dead letter's line shows it."""
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return base64.b64encode(payload).decode()
