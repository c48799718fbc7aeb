"""The flow's control input: adjustments and requests to resend from the store's control log, and new catalogs.

What it hands out: each record of the log once, in order, and news of a catalog when a newer version is applied.
Position: the last record's, with the log's own name and the record's id, so a resume hands out again what came after
its snapshot. A log that does not have that record there is another one, as its store was lost or put back from a
backup: it is read from its start, shards know the adjustments that they have applied by their ids, and every total is
written again. One partition, on one worker. It asks every POLL, and looks at the catalog file as often as that. A
source that ends has all the log's records first, and then ends too, as the flow would never end otherwise.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from tidegate.connectors.engine import FixedPartitionedSource, StatefulSourcePartition
from tidegate.operators.model.catalog import VersionedCatalog
from tidegate.operators.model.ports import (
    Acknowledgement,
    Adjustment,
    ControlLog,
    ControlRecord,
    Resend,
    Unread,
)

POLL = timedelta(milliseconds=10)
# Between looks whether the log is still the one that is being read: it takes two more questions to the store.
LOOK_AGAIN = timedelta(seconds=1)


class CatalogNews(NamedTuple):
    """A newer catalog version is to be gone by. Each process reads it for itself, as it may be large."""

    number: int


ControlItem = Adjustment | Resend | CatalogNews

_LOG = logging.getLogger(__name__)


class Reached(msgspec.Struct, frozen=True):
    """The last record that was handed out, and the log that it is in; all empty before the first."""

    log: str = ""
    position: str = ""
    id: str = ""


def read_reached(state: str | None) -> Reached:
    """Return what a snapshot has; one of before logs had names is just a position."""
    if state is not None and state.startswith("{"):
        return msgspec.json.decode(state, type=Reached)
    return Reached(position=state or "")


def is_another(log: ControlLog, name: str, reached: Reached) -> bool:
    """Return whether the log of this name lacks the record that was read last, where it was."""
    if reached.log not in ("", name):
        return True
    if not reached.position:
        return False
    found = log.at(reached.position)
    return found is None or reached.id not in ("", id_of(found.record))


def id_of(record: ControlRecord | Unread) -> str:
    """Return the record's id, empty for one that can't be read."""
    return "" if isinstance(record, Unread) else record.id


class ControlSource(FixedPartitionedSource[ControlItem, str]):
    """Reads the log that `open_log` opens.

    `look` applies a changed catalog file and returns the version to go by; `asking` is entered while the
    store is asked, which may take as long as it is away.
    """

    def __init__(
        self,
        open_log: Callable[[], ControlLog],
        *,
        endless: bool,
        catalog: VersionedCatalog,
        look: Callable[[ControlLog], VersionedCatalog],
        asking: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._open_log = open_log
        self.endless = endless
        self.catalog = catalog
        self.look = look
        self.asking = asking

    def list_parts(self) -> list[str]:
        return ["control"]

    def build_part(self, step_id: str, for_part: str, resume_state: str | None) -> "_ControlPartition":
        with self.asking():
            log = self._open_log()
        return _ControlPartition(self, log, read_reached(resume_state))


class _ControlPartition(StatefulSourcePartition[ControlItem, str]):
    def __init__(self, source: ControlSource, log: ControlLog, reached: Reached) -> None:
        self._source = source
        self._log = log
        self._reached = reached
        self._look_at = datetime.min.replace(tzinfo=UTC)
        self._number = source.catalog.number
        self._awake: datetime | None = None

    def next_batch(self) -> list[ControlItem]:
        with self._source.asking():
            number = self._source.look(self._log).number
            items = self._records()
        if number > self._number:
            self._number = number
            items.append(CatalogNews(number))
        if not items and not self._source.endless:
            raise StopIteration
        self._awake = None if items else datetime.now(UTC) + POLL
        return items

    def _records(self) -> list[ControlItem]:
        """Return the new records. Log and skip one that cannot be read, as it would stop all that follow."""
        items: list[ControlItem] = []
        if (now := datetime.now(UTC)) >= self._look_at:
            self._look_at = now + LOOK_AGAIN
            items += self._begun_again()
        for position, record in self._log.after(self._reached.position):
            if isinstance(record, Unread):
                _LOG.error("control record %s is passed over, as it can't be read: %s", position, record.why)
            elif not isinstance(record, Acknowledgement):
                # An acknowledgement is for reconciliation alone.
                items.append(record)
            self._reached = Reached(self._reached.log, position, id_of(record))
        return items

    def next_awake(self) -> datetime | None:
        return self._awake

    def _begun_again(self) -> list[ControlItem]:
        """Go to the start of a log that is another one, whose store then lacks totals too, so they are asked for."""
        name = self._log.generation()
        if not is_another(self._log, name, self._reached):
            self._reached = msgspec.structs.replace(self._reached, log=name)
            return []
        _LOG.warning(
            "the control log is not the one that was read before (the store was lost, or put back from a backup): "
            "it is read from its start, without adjustments that were applied, and every total is written again"
        )
        self._reached = Reached(name)
        return [Resend(id=f"store-{name}")]

    def snapshot(self) -> str:
        return msgspec.json.encode(self._reached).decode()

    def close(self) -> None:
        self._log.close()
