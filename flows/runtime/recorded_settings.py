"""The settings that a recovery store was made for and that cannot change while it lives, recorded beside it.

What may change, and takes effect for the state as it is, is recorded by each shard in its own state
(operators/metering/snapshot.py): lateness, clock and store.
"""

from pathlib import Path
from typing import Final

import msgspec

FILE: Final = "settings.json"
FORMAT: Final = 2
"""Raised whenever state is written that programs before cannot read; see docs/operations.md, on another version."""
_BEFORE: Final = "shards"
"""The file of earlier versions, with the number of shards alone."""


class Recorded(msgspec.Struct, frozen=True):
    """How state and positions are divided: customers by `shards`, Bytewax's keys by `recovery_parts`.

    `format` is that of the newest program that has run on the folder, 0 of those that did not record it.
    """

    shards: int
    recovery_parts: int
    format: int = 0


def write(folder: Path, recorded: Recorded) -> None:
    """Record the settings in a recovery folder, with this program's format."""
    new = folder / f"{FILE}.new"
    new.write_bytes(msgspec.json.encode(msgspec.structs.replace(recorded, format=FORMAT)))
    new.replace(folder / FILE)


def read(folder: Path) -> Recorded:
    """Return what a recovery folder was made for, also one of an earlier version."""
    path = folder / FILE
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Recorded)
    return Recorded(int((folder / _BEFORE).read_text()), len(list(folder.glob("part-*.sqlite3"))))


def newer(folder: Path) -> str | None:
    """Return why this program cannot run on the folder, where a newer one has written the state; None where it can."""
    made = read(folder)
    if made.format <= FORMAT:
        return None
    return (
        f"{folder}: its state was written by a newer version of Tidegate (format {made.format}, this one reads up"
        f" to {FORMAT}); start that version, or restore a backup from before the upgrade"
    )


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
                f" {setting}={was}, or start with an empty state in another TIDEGATE_DATA_DIR"
            )
    return None
