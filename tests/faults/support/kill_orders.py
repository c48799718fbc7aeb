"""What a process that kills itself is told: how to run, and where to die."""

from typing import Literal

import msgspec

KILLS = "kills.ndjson"
MET = "met.json"

Phase = Literal["before", "half", "after", "soon"]


class Kill(msgspec.Struct, frozen=True):
    """Death at the `nth` operation of a kind; of the kind `time`, `seconds` after the start."""

    kind: str
    nth: int = 1
    phase: Phase = "after"
    seconds: float = 0.0


class Orders(msgspec.Struct, frozen=True):
    """One start of the flow; all paths are relative to the run's folder."""

    kill: Kill | None = None
    catalogs: str = "catalogs.pickle"
    epoch_ms: int = 60
    pace_ms: int = 5
    workers: int = 1
    process: int = 0
    addresses: list[str] = []


class Met(msgspec.Struct, frozen=True):
    """What a start that was not killed met: how often each kind of operation, and how long it took."""

    operations: dict[str, int]
    seconds: float
