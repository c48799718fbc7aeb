"""Where reading begins in the partitions of a topic that have no position yet, decided once.

`start` says it for the partitions there are when the flow is first started. Were it asked again after a crash before
the first snapshot, or for a partition that was added later, `latest` would pass over events. So the answer is kept
beside the recovery store, and a partition that is not in it was added since, and is read from its beginning.
"""

import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

Starts = dict[int, int]


class _Kept(msgspec.Struct, frozen=True):
    """The topic's own id, and the first offset of each partition."""

    id: str
    starts: Starts


_KEPT = msgspec.json.Decoder(dict[str, _Kept])


def settled(
    path: Path | None,
    topic: str,
    id: str,
    partitions: Sequence[int],
    first: Callable[[Sequence[int]], Starts],
    beginning: Callable[[Sequence[int]], Starts],
) -> tuple[Starts, list[int]]:
    """Return the offset to begin at of each partition, and which partitions were added since the first start.

    `first` answers for a topic that was never read, `beginning` for partitions that came later. Without a path nothing
    is kept. A topic of the same name and another id is another topic.
    """
    if path is None:
        return first(partitions), []
    with path.with_suffix(".lock").open("w") as lock:
        # Processes of a cluster start at once, and all have to begin at the same place.
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = _KEPT.decode(path.read_bytes()) if path.exists() else {}
        known = kept.get(topic)
        if known is None or known.id != id:
            starts, added = first(partitions), []
        else:
            added = [partition for partition in partitions if partition not in known.starts]
            starts = {**known.starts, **(beginning(added) if added else {})}
        if known is None or starts != known.starts or known.id != id:
            _write(path, {**kept, topic: _Kept(id, starts)})
    return starts, added


def _write(path: Path, kept: dict[str, _Kept]) -> None:
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(msgspec.json.encode(kept))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
