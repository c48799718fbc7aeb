"""The flow's control input: adjustments and requests to resend from the store's control log, and new catalogs.

What it hands out: each record of the log once, in order, and the number of a catalog when a newer one is applied.
Position: the last record's, so a resume hands out again what came after its snapshot. One partition, on one worker.
It asks every POLL, and looks at the catalog file as often as that. A source that ends has all the log's records
first, and then ends too, as the flow would never end otherwise.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition

from operators.ports import Adjustment, ControlLog, Resend

POLL = timedelta(milliseconds=10)

ControlItem = Adjustment | Resend | int
"""A record of the log, or the number of the newest catalog."""

_LOG = logging.getLogger(__name__)


class ControlSource(FixedPartitionedSource[ControlItem, str]):
    """`open_log` opens the log; `look` applies a changed catalog file and says why it can't be."""

    def __init__(
        self,
        open_log: Callable[[], ControlLog],
        *,
        endless: bool,
        catalog_number: int,
        look: Callable[[ControlLog], str | None],
    ) -> None:
        self._open_log = open_log
        self._endless = endless
        self._catalog_number = catalog_number
        self._look = look

    def list_parts(self) -> list[str]:
        return ["control"]

    def build_part(self, step_id: str, for_part: str, resume_state: str | None) -> "_ControlPartition":
        return _ControlPartition(
            self._open_log(), resume_state or "", self._endless, self._catalog_number, self._look
        )


class _ControlPartition(StatefulSourcePartition[ControlItem, str]):
    def __init__(
        self,
        log: ControlLog,
        position: str,
        endless: bool,
        catalog_number: int,
        look: Callable[[ControlLog], str | None],
    ) -> None:
        self._log = log
        self._position = position
        self._endless = endless
        self._number = catalog_number
        self._look = look
        self._awake: datetime | None = None

    def next_batch(self) -> list[ControlItem]:
        if problem := self._look(self._log):
            _LOG.error("the catalog stays as it is: %s", problem)
        items: list[ControlItem] = []
        for position, record in self._log.after(self._position):
            self._position = position
            items.append(record)
        if (number := self._log.catalog_number()) > self._number:
            self._number = number
            items.append(number)
        if not items and not self._endless:
            raise StopIteration
        self._awake = None if items else datetime.now(UTC) + POLL
        return items

    def next_awake(self) -> datetime | None:
        return self._awake

    def snapshot(self) -> str:
        return self._position

    def close(self) -> None:
        self._log.close()
