"""The catalog that a flow last went by, and the meters that its state counts, in a file beside that state.

It outlives the store: a flow whose store was lost knows what it has counted before it takes up a catalog from the new
one, and has one to go by where none there can be used. Processes that share the folder share the file.
"""

import fcntl
import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from tidegate.settings.catalog.meter_history import Definition

_LOG: Final = logging.getLogger(__name__)


class Noted(msgspec.Struct):
    """The file's content. `text` is the catalog's YAML, empty before the first."""

    text: str = ""
    meters: dict[str, Definition] = {}


class LastApplied:
    """The file at `path`, in the folder of the recovery store, with which it lives and dies.

    One that can't be read is as if there were none. As long as there is no such folder, notes wait for `save`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.noted = self._read()

    def note(self, text: str, meters: dict[str, Definition]) -> None:
        """Keep the catalog that is gone by from now on; meters that were counted before stay."""
        noted = Noted(text, {**meters, **self.noted.meters})
        if noted != self.noted:
            self.noted = noted
            self.save()

    def counts(self, meters: dict[str, Definition]) -> bool:
        """Keep what a shard's state has counted, whatever was noted; whether that was news."""
        if {**self.noted.meters, **meters} == self.noted.meters:
            return False
        self.noted.meters |= meters
        self.save()
        return True

    def save(self) -> None:
        """Write what is noted. Where that fails the flow goes on, as it matters only if the store is lost."""
        if not self._path.parent.exists():
            return
        try:
            with self._path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self.noted.meters = {**self._read().meters, **self.noted.meters}
                self._write(msgspec.json.encode(self.noted))
        except OSError as error:
            _LOG.error("%s: cannot be written (%s)", self._path, error)

    def _read(self) -> Noted:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Noted)
        except FileNotFoundError:
            return Noted()
        except (OSError, msgspec.MsgspecError) as error:
            _LOG.error("%s: cannot be read (%s); it is made again", self._path, error)
            return Noted()

    def _write(self, body: bytes) -> None:
        """Whole or not at all."""
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._path)
