"""Positions in a recovery store of format 1 or older name the modules of that time; they are rewritten to today's.

Bytewax pickles what steps and partitions return as their snapshot, and a pickle names its class by module. All classes
that were ever stored are listed here, so moving one means to add a line and raise `recorded_settings.FORMAT`.

Source: the table `snaps` in Bytewax 0.21's src/recovery.rs
"""

import io
import pickle
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from tidegate.connectors.sqlite.connection import connect, transaction

MOVED: Final = {
    ("connectors.demo", "DemoPosition"): "tidegate.connectors.demo.source",
    ("connectors.file", "Written"): "tidegate.connectors.files.ndjson",
    ("connectors.file_partition", "FilePosition"): "tidegate.connectors.files.partition",
    ("connectors.journal", "Position"): "tidegate.flows.runtime.journal",
    ("connectors.kafka", "KafkaPosition"): "tidegate.connectors.kafka.source",
    ("connectors.kafka_sinks", "Delivered"): "tidegate.connectors.kafka.sinks",
    ("connectors.log", "LogPosition"): "tidegate.connectors.log.source",
}
"""Module and name of a class as it was stored: the module that has it now."""


class _Renaming(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(MOVED.get((module, name), module), name)


def rewrite(folder: Path) -> None:
    """Rewrite the positions in a recovery folder that name a class by an earlier module; once more changes nothing.

    To be called while no flow has the folder open. A kill leaves each part as it was or rewritten.
    """
    for part in sorted(folder.glob("part-*.sqlite3")):
        with closing(connect(part, "rw")) as opened, transaction(opened):
            rows = opened.execute(
                "SELECT rowid, ser_change FROM snaps WHERE ser_change IS NOT NULL"
            ).fetchall()
            opened.executemany(
                "UPDATE snaps SET ser_change = ? WHERE rowid = ?",
                ((pickle.dumps(_Renaming(io.BytesIO(stored)).load()), row) for row, stored in rows),
            )
