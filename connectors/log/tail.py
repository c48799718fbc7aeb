"""The end of the service's log (connectors/log/writer.py), behind what the flow has counted: read once, at a start.

Positions are those of heartbeats: the segment's number, then the byte in it (`log_position`). A line that has no end
yet was never answered for and is left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tidegate.connectors.log.writer import BYTE_BITS, log_position, number_of, segments
from tidegate.operators.model.ports import Place

BLOCK_BYTES: Final = 1 << 20


class TailLine(NamedTuple):
    """An event as it lies in the log, and its place."""

    payload: bytes
    place: Place


def lanes_of(folder: Path) -> list[str]:
    """Return the names of the lanes that anybody has written."""
    return sorted(lane.name for lane in folder.glob("[0-9]*") if lane.name.isdecimal())


def tail_bytes(folder: Path, lane: str, position: int) -> int:
    """Return how many bytes the lane has behind the position."""
    return sum(path.stat().st_size - start for path, start in _parts(folder / lane, position))


def read_tail(folder: Path, lane: str, position: int) -> Iterator[list[TailLine]]:
    """Yield the lines of a lane behind the position, in order, in blocks."""
    for path, start in _parts(folder / lane, position):
        with path.open("rb") as file:
            file.seek(start)
            at = start
            while lines := file.readlines(BLOCK_BYTES):
                block = []
                for line in lines:
                    at += len(line)
                    if line.endswith(b"\n"):
                        block.append(TailLine(line[:-1], Place(lane, log_position(number_of(path), at))))
                yield block


def _parts(lane: Path, position: int) -> Iterator[tuple[Path, int]]:
    """Yield the segments that reach behind the position, with the byte to begin at."""
    number, byte = position >> BYTE_BITS, position & ((1 << BYTE_BITS) - 1)
    for path in segments(lane):
        if number_of(path) > number:
            yield path, 0
        elif number_of(path) == number and path.stat().st_size > byte:
            yield path, byte
