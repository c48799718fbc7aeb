"""Which step of the flow reads or writes which place, for as long as a recovery store lives.

Bytewax keeps positions by the id of their step and the name of their partition, and panics where a step has a
position of a partition that is gone. So each place that a role (`source`, `billing`, …) ever had keeps a step of its
own: another place begins without a position, and the earlier one goes on where it was when it comes back. Within one
place, partitions that are gone, such as files that a glob no longer finds, stay as partitions that have ended.
"""

import fcntl
import logging
import os
import re
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from tidegate.connectors.engine import FixedPartitionedSource, StatefulSourcePartition
from tidegate.connectors.sqlite.connection import connect

FOLDER: Final = "recovery"
FLOW: Final = "metering"
FILE: Final = "steps.json"

_LOG = logging.getLogger("tidegate.flow")
# A pickled position names its class first.
_OF = re.compile(rb"tidegate\.connectors\.(file|log|demo|kafka)s?\.")
_PLACES = msgspec.json.Decoder(dict[str, list[str]])


class StepNames:
    """The places of each role so far, in `data_dir`; without recovery (None) every step has its first name."""

    def __init__(self, data_dir: Path | None) -> None:
        self._folder = data_dir / FOLDER if data_dir else None

    def name(self, role: str, place: str, *, first: str = "") -> str:
        """Return the id of the step that reads or writes `place` as `role`, and remember it.

        The first place has the role's own name, or the one given as `first`; later ones `role_2`, `role_3`, …
        """
        first = first or role
        if self._folder is None:
            return first
        with (self._folder / "steps.lock").open("w") as lock:
            # Processes of a cluster start at once, and all have to give the same names.
            fcntl.flock(lock, fcntl.LOCK_EX)
            places = self._places()
            known = places.setdefault(role, [])
            if place not in known:
                known += [other for other in self._written_before(first, place) if not known]
                known.append(place)
                _replace(self._folder / FILE, msgspec.json.encode(places))
            number = known.index(place) + 1
        return first if number == 1 else f"{role}_{number}"

    def partitions(self, step: str) -> list[str]:
        """Return the partitions that the recovery store has positions of for this step."""
        return sorted({key for key, _ in self._positions(step)})

    def _places(self) -> dict[str, list[str]]:
        assert self._folder is not None
        path = self._folder / FILE
        return _PLACES.decode(path.read_bytes()) if path.exists() else {}

    def _written_before(self, step: str, place: str) -> list[str]:
        """Return the place that a store without a record of places has positions of, if it is not `place`."""
        found = {
            match[1].decode() for _, position in self._positions(step) if (match := _OF.search(position))
        }
        return [f"{scheme}:" for scheme in sorted(found - {place.partition(":")[0]})]

    def _positions(self, step: str) -> Iterable[tuple[str, bytes]]:
        if self._folder is None:
            return
        for part in sorted(self._folder.glob("part-*.sqlite3")):
            with closing(connect(part, "rw")) as opened:
                yield from opened.execute(
                    "SELECT state_key, ser_change FROM snaps WHERE step_id = ? AND ser_change IS NOT NULL",
                    (f"{FLOW}.{step}",),
                )


def _replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


class ResumedSource(FixedPartitionedSource[Any, Any]):
    """The partitions of `source`, and those in `known` that it no longer has, which keep their position and end."""

    def __init__(self, source: FixedPartitionedSource[Any, Any], known: Collection[str]) -> None:
        self._source = source
        self._known = known
        self._gone: frozenset[str] = frozenset()

    def list_parts(self) -> list[str]:
        parts = self._source.list_parts()
        self._gone = frozenset(self._known) - frozenset(parts)
        return [*parts, *sorted(self._gone)]

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> StatefulSourcePartition[Any, Any]:
        if for_part not in self._gone:
            return self._source.build_part(step_id, for_part, resume_state)
        _LOG.warning(
            "source: %r is no longer part of it; nothing more is read of it unless it comes back", for_part
        )
        return _Gone(resume_state)


class _Gone(StatefulSourcePartition[Any, Any]):
    """A partition that hands out nothing and keeps its position."""

    def __init__(self, position: Any) -> None:
        self._position = position

    def next_batch(self) -> list[Any]:
        raise StopIteration

    def snapshot(self) -> Any:
        return self._position
