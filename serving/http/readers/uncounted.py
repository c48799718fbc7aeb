"""What services took before this one started and the flow has not counted yet, for checks to know of.

A service remembers what it took until totals contain it (serving/gate/pending.py), and a start forgets that. But the
log has it: everything behind the position that the flow's heartbeats name. Limits: of each lane TAIL_BYTES at most; a
tail that is longer is left to `max_lag`, with a line.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from tidegate.connectors.log.tail import TailLine, lanes_of, read_tail, tail_bytes
from tidegate.operators.events.envelope import read_identity
from tidegate.operators.model.freshness import Heartbeat, select_newest_generation
from tidegate.serving.gate.pending import PendingEvent
from tidegate.serving.http.readers.intake import Verdict

TAIL_BYTES: Final = 16 << 20
_log = logging.getLogger("tidegate.service")


def take_up(
    folder: Path,
    heartbeats: Iterable[Heartbeat],
    judge: Callable[[Sequence[bytes]], list[Verdict]],
    accepted: Callable[[str, bytes, PendingEvent], None],
) -> int:
    """Have all events accepted that are in the log in `folder` and not counted; return how many."""
    beats, count = select_newest_generation(heartbeats), 0
    for lane in lanes_of(folder):
        position = _counted(beats, lane)
        if position is None:
            continue
        if (size := tail_bytes(folder, lane, position)) > TAIL_BYTES:
            _log.warning(
                "lane %s of the log has %d MiB that are not counted yet; checks do not know of them",
                lane,
                size >> 20,
            )
            continue
        for lines in read_tail(folder, lane, position):
            count += _accept(lines, judge, accepted)
    return count


def _counted(beats: Sequence[Heartbeat], lane: str) -> int | None:
    """Return up to where every shard has counted the lane; None where the flow does not read it."""
    if not beats:
        return 0
    positions = [beat.positions.get(lane) for beat in beats]
    known = [position for position in positions if position is not None]
    if len(beats) < beats[0].shards or len(known) < len(beats):
        return 0 if known else None
    return min(known)


def _accept(
    lines: Sequence[TailLine],
    judge: Callable[[Sequence[bytes]], list[Verdict]],
    accepted: Callable[[str, bytes, PendingEvent], None],
) -> int:
    verdicts = judge([line.payload for line in lines]) if lines else []
    count = 0
    for line, verdict in zip(lines, verdicts, strict=True):
        if not verdict.reason and verdict.quantities:
            event = PendingEvent(verdict.at, verdict.quantities, line.place)
            accepted(read_identity(line.payload).customer, verdict.identity, event)
            count += 1
    return count
