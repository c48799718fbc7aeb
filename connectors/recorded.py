"""The settings that a recovery store was made for and that cannot change while it lives, recorded beside it.

What may change, and takes effect for the state as it is, is recorded by each shard in its own state
(operators/snapshot.py): lateness, clock and store.
"""

from pathlib import Path
from typing import Final

import msgspec

FILE: Final = "settings.json"
_BEFORE: Final = "shards"
"""The file of earlier versions, with the number of shards alone."""


class Recorded(msgspec.Struct, frozen=True):
    """How state and positions are divided: customers by `shards`, Bytewax's keys by `recovery_parts`."""

    shards: int
    recovery_parts: int


def write(folder: Path, recorded: Recorded) -> None:
    """Record the settings in a recovery folder that is being made."""
    (folder / FILE).write_bytes(msgspec.json.encode(recorded))


def read(folder: Path) -> Recorded:
    """Return what a recovery folder was made for, also one of an earlier version."""
    path = folder / FILE
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Recorded)
    return Recorded(int((folder / _BEFORE).read_text()), len(list(folder.glob("part-*.sqlite3"))))


def difference(folder: Path, asked: Recorded) -> str | None:
    """Return why the folder cannot be used with these settings, in one line that says what to do."""
    made = read(folder)
    for name, effect in (
        ("shards", "customers would be looked for in the wrong one"),
        ("recovery_parts", "positions would be looked for in the wrong one"),
    ):
        was, now = getattr(made, name), getattr(asked, name)
        if was != now:
            setting = f"TIDEGATE_{name.upper()}"
            return (
                f"{setting}={now}: {folder} was made with {was}, which can't be changed, as {effect}; set"
                f" {setting}={was}, or start anew in another TIDEGATE_DATA_DIR"
            )
    return None
