"""Filling a store again that lost totals: the flow is asked to write all of them, and its shards say when they have.

A request goes through the store's control log, so it reaches the flow that runs, or the next one that starts. Every
shard writes all of its totals, absolute and with their versions, and then a note of kind `resend`; where nothing was
lost this changes nothing.
"""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final, NamedTuple

from tidegate.operators.metering.republish import REPUBLISH_KIND, read_republished
from tidegate.operators.model.ports import ControlLog, StoreReader

LOOK: Final = timedelta(milliseconds=200)
# More shards than there can be, of this rebuild and of those before it.
NOTES_READ: Final = 4096


class Progress(NamedTuple):
    """How many shards have written all their totals, and of how many, 0 before the first has."""

    done: int
    shards: int

    @property
    def over(self) -> bool:
        return 0 < self.shards <= self.done


def ask(log: ControlLog, *, anew: bool = False) -> str:
    """Asks for a rebuild, or joins the one under way, unless `anew`; its id."""
    return log.resend(anew=anew)


def progress(reader: StoreReader, rebuild: str) -> Progress:
    """How far it is."""
    found = [read_republished(note) for note in reader.notes(REPUBLISH_KIND, limit=NOTES_READ)]
    shards = {shard: of for id, shard, of in found if id == rebuild}
    return Progress(len(shards), max(shards.values(), default=0))


def follow(
    reader: StoreReader,
    rebuild: str,
    wait: timedelta,
    *,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Yield the progress whenever there is more, until it is over or `wait` has passed without any."""
    last, give_up = Progress(-1, 0), monotonic() + wait.total_seconds()
    while not last.over:
        now = progress(reader, rebuild)
        if now != last:
            last, give_up = now, monotonic() + wait.total_seconds()
            yield now
        elif monotonic() > give_up:
            return
        else:
            sleep(LOOK.total_seconds())
