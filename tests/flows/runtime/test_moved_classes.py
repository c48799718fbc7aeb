"""State outlives a move of the code: positions name their classes by module, and earlier names are rewritten."""

import pickle
import pickletools
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import Place
from tests.flows.meter.test_metering import FIRST, SECOND
from tidegate.connectors.demo.source import DemoPosition
from tidegate.connectors.files.ndjson import Written
from tidegate.connectors.files.partition import FilePosition
from tidegate.connectors.kafka.sinks import Delivered
from tidegate.connectors.kafka.source import KafkaPosition
from tidegate.connectors.log.source import LogPosition
from tidegate.flows.runtime import recorded_settings, recovery
from tidegate.flows.runtime.journal import Position
from tidegate.flows.runtime.moved_classes import MOVED
from tidegate.flows.runtime.recovery import RecoveryError

# As programs of format 1 wrote them.
EARLIER: dict[bytes, Any] = {
    b"\x80\x04\x95,\x00\x00\x00\x00\x00\x00\x00\x8c\x0fconnectors.demo\x94\x8c\x0cDemoPosition\x94\x93\x94K\x01K\x02"
    b"\x86\x94\x81\x94.": DemoPosition(1, 2),
    b"\x80\x04\x95'\x00\x00\x00\x00\x00\x00\x00\x8c\x0fconnectors.file\x94\x8c\x07Written\x94\x93\x94KGK\x01\x86\x94"
    b"\x81\x94.": Written(71, 1),
    b"\x80\x04\x95E\x00\x00\x00\x00\x00\x00\x00\x8c\x19connectors.file_partition\x94\x8c\x0cFilePosition\x94\x93\x94("
    b"K\tK\t\x8c\x01d\x94K\x03K\x00\x8c\x01w\x94K\x05t\x94\x81\x94.": FilePosition(9, 9, "d", 3, 0, "w", 5),
    b"\x80\x04\x95=\x00\x00\x00\x00\x00\x00\x00\x8c\x12connectors.journal\x94\x8c\x08Position\x94\x93\x94(K\x03K\x01}"
    b"\x94\x8c\x05a.log\x94K\x07s\x8c\x01b\x94t\x94\x81\x94.": Position(3, 1, {"a.log": 7}, "b"),
    b"\x80\x04\x952\x00\x00\x00\x00\x00\x00\x00\x8c\x10connectors.kafka\x94\x8c\rKafkaPosition\x94\x93\x94K\x05K\x02"
    b"\x8c\x01t\x94\x87\x94\x81\x94.": KafkaPosition(5, 2, "t"),
    b"\x80\x04\x95A\x00\x00\x00\x00\x00\x00\x00\x8c\x16connectors.kafka_sinks\x94\x8c\tDelivered\x94\x93\x94\x8c\x01t"
    b"\x94}\x94K\x00K\x05s}\x94\x8c\x02id\x94K\x01s\x87\x94\x81\x94.": Delivered("t", {0: 5}, {"id": 1}),
    b"\x80\x04\x95k\x00\x00\x00\x00\x00\x00\x00\x8c\x0econnectors.log\x94\x8c\x0bLogPosition\x94\x93\x94K\x02\x8c\x19"
    b"connectors.file_partition\x94\x8c\x0cFilePosition\x94\x93\x94(K\tK\t\x8c\x01d\x94K\x00K\x00\x8c\x00\x94K\x00t\x94"
    b"\x81\x94\x86\x94\x81\x94.": LogPosition(2, FilePosition(9, 9, "d")),
}


def stored(folder: Path) -> list[bytes]:
    """The pickles in a recovery folder, in the order of their steps."""
    found: list[bytes] = []
    for part in sorted(folder.glob("part-*.sqlite3")):
        with closing(sqlite3.connect(part)) as opened:
            rows = opened.execute(
                "SELECT ser_change FROM snaps WHERE ser_change IS NOT NULL ORDER BY step_id, state_key, snap_epoch"
            )
            found += [pickled for (pickled,) in rows]
    return found


def classes_in(pickled: bytes) -> set[tuple[str, str]]:
    """Module and name of the classes that a pickle names."""
    texts: list[str] = []
    found: set[tuple[str, str]] = set()
    for opcode, argument, _ in pickletools.genops(pickled):
        if "UNICODE" in opcode.name:
            texts.append(str(argument))
        elif opcode.name == "STACK_GLOBAL":
            found.add((texts[-2], texts[-1]))
        assert opcode.name != "GLOBAL"
    return found


def earlier(tmp_path: Path, format: int) -> Path:
    """A recovery folder with every class that was ever stored, as a program of this format left it."""
    folder = recovery.prepare(tmp_path, 2, 4)
    for part, pickled in enumerate(EARLIER):
        with closing(sqlite3.connect(folder / f"part-{part % 2}.sqlite3")) as opened, opened:
            opened.execute("INSERT INTO snaps VALUES ('', 'metering.source', ?, 1, ?)", (str(part), pickled))
    with closing(sqlite3.connect(folder / "part-0.sqlite3")) as opened, opened:
        # A run that got beyond the epoch.
        opened.execute("INSERT INTO exs VALUES ('', 0, 1, 0)")
        opened.execute("INSERT INTO fronts VALUES ('', 0, 0, 5)")
    recorded = recorded_settings.Recorded(4, 2)
    recorded_settings.write(folder, recorded)
    text = (folder / recorded_settings.FILE).read_text()
    changed = text.replace(f'"format":{recorded_settings.FORMAT}', f'"format":{format}')
    (folder / recorded_settings.FILE).write_text(changed)
    return folder


def test_what_an_earlier_program_stored_is_read(tmp_path: Path) -> None:
    folder = earlier(tmp_path, 1)
    recovery.prepare(tmp_path, 2, 4)
    first = stored(folder)
    assert sorted(map(repr, map(pickle.loads, first))) == sorted(map(repr, EARLIER.values()))
    assert recorded_settings.read(folder).format == recorded_settings.FORMAT
    recovery.prepare(tmp_path, 2, 4)
    assert stored(folder) == first


def test_a_newer_program_s_positions_are_left_alone(tmp_path: Path) -> None:
    folder = earlier(tmp_path, recorded_settings.FORMAT + 1)
    with pytest.raises(RecoveryError, match="written by a newer version"):
        recovery.prepare(tmp_path, 2, 4)
    assert sorted(stored(folder)) == sorted(EARLIER)


def test_classes_that_are_stored_are_listed(place: Place) -> None:
    """Else the next move of one leaves states behind that no program reads."""
    place.append("first.jsonl")
    place.run(ALERTS="file:alerts.ndjson")
    assert place.periods() == FIRST
    named = {one for pickled in stored(place.folder / "state" / "recovery") for one in classes_in(pickled)}
    assert named and named <= {(module, name) for (_, name), module in MOVED.items()}
    place.append("second.jsonl")
    place.run()
    assert place.periods() == SECOND
