"""A followed file is rotated in every way that loggers know, between any two polls and lives."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.connectors.contracts.source import payloads_in, poll
from tidegate.connectors.files.ndjson import FileSource
from tidegate.connectors.files.partition import GRACE_US

BASE = 1_700_000_000


class Clock:
    now = BASE * 1_000_000

    def __call__(self) -> int:
        return self.now


class Log:
    """A log that is written and rotated, and the source that follows it; what was written, and what came."""

    def __init__(self, folder: Path, name: str = "in.log") -> None:
        self.path = folder / name
        self.clock = Clock()
        self.written: list[bytes] = []
        self.came: list[bytes] = []
        self._ticks = 0
        self._state: Any = None
        self.make()
        self.start()

    def start(self) -> None:
        source = FileSource(str(self.path), follow=True, poll_bytes=32, clock=self.clock)
        self.partition = source.build_part("in", str(self.path), self._state)

    def write(self, to: Path | None = None) -> None:
        line = b"line %d" % len(self.written)
        self.written.append(line)
        with (to or self.path).open("ab") as file:
            file.write(line + b"\n")
        self.touch(to or self.path)

    def make(self) -> None:
        self.path.touch()
        self.touch(self.path)

    def touch(self, path: Path) -> None:
        """Files are written at different times; tests are faster than the file system's clock."""
        self._ticks += 1
        os.utime(path, ns=(0, BASE * 10**9 + self._ticks))

    def shift(self) -> Path:
        """Make room for `in.log.1`, as logrotate does."""
        for number in range(20, 0, -1):
            if (old := Path(f"{self.path}.{number}")).exists():
                old.rename(f"{self.path}.{number + 1}")
        return Path(f"{self.path}.1")

    def rename(self) -> None:
        self.path.rename(self.shift())
        self.make()

    def copy_and_cut(self) -> None:
        copy = self.shift()
        shutil.copyfile(self.path, copy)
        self.touch(copy)
        os.truncate(self.path, 0)
        self.touch(self.path)

    def poll(self) -> None:
        self.came += payloads_in(poll(self.partition) or [])

    def drain(self) -> None:
        """Poll until nothing comes for longer than a rotated file is waited for, as often as there may be files."""
        for _ in range(60):
            before = len(self.came)
            for _ in range(10):
                self.poll()
            self.clock.now += GRACE_US
            if len(self.came) == before == len(self.written):
                break

    def restart(self) -> None:
        self._state = pickle.loads(pickle.dumps(self.partition.snapshot()))
        self.partition.close()

    def delete(self) -> None:
        """While it is followed, all of it was read; a deleted file is still open."""
        self.drain()
        self.path.unlink()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path)
    yield made
    made.partition.close()


acts = st.lists(
    st.sampled_from(["write", "write", "poll", "rename", "copy", "delete", "down", "wait"]), max_size=25
)


@settings(deadline=None, max_examples=150)
@given(acts, st.sampled_from(["in.log", "events.ndjson", "log"]))
def test_every_line_comes_once_and_in_order_however_the_log_is_rotated(acts: list[str], name: str) -> None:
    """Of a file that was deleted or cut nothing is read twice, and nothing of what was written before is lost."""
    with TemporaryDirectory() as folder:
        log = Log(Path(folder), name)
        down = False
        for act in acts:
            if act == "write":
                log.write()
            elif act == "rename":
                log.rename()
            elif act == "copy":
                log.copy_and_cut()
            elif act == "down" and not down:
                log.restart()
                down = True
                continue
            elif act == "delete" and not down:
                log.delete()
                log.poll()
                log.make()
            elif act == "wait" and not down:
                log.drain()
            if down and act in ("poll", "wait"):
                log.start()
                down = False
            if not down:
                log.poll()
        if down:
            log.start()
        log.drain()
        log.partition.close()
        assert log.came == log.written


def test_a_rotated_file_is_read_until_its_writer_has_left_it(log: Log) -> None:
    """logrotate makes the new file before the writer knows of it."""
    log.write()
    log.poll()
    log.rename()
    log.poll()
    log.write(to=Path(f"{log.path}.1"))
    log.poll()
    log.clock.now += GRACE_US - 1
    log.write(to=Path(f"{log.path}.1"))
    log.write()
    log.poll()
    assert log.came == log.written[:3]
    log.drain()
    assert log.came == log.written


def test_a_last_line_without_newline_is_a_line_once_its_file_was_rotated(log: Log) -> None:
    with log.path.open("ab") as file:
        file.write(b"torn")
    log.poll()
    log.rename()
    log.write()
    log.drain()
    assert log.came == [b"torn", *log.written]


def test_compressed_files_are_left_out_and_named(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    log.write()
    log.poll()
    log.restart()
    log.rename()
    packed = Path(f"{log.path}.1.gz")
    log.write()
    log.rename()
    Path(f"{log.path}.1").rename(packed)
    log.write()
    log.start()
    log.drain()
    assert log.came == [log.written[0], log.written[2]]
    assert "in.log.1.gz" in caplog.text


def test_a_file_that_is_not_found_again_is_named(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """It was deleted while nobody read: what was added to it meanwhile nobody has."""
    log.write()
    log.poll()
    log.restart()
    log.path.unlink()
    log.start()
    log.poll()
    assert log.partition.snapshot() == log._state
    log.write()
    log.drain()
    assert log.came == log.written
    assert "is another file than the one that was read up to byte 7" in caplog.text


def test_a_file_that_was_cut_and_grew_again_is_read_from_its_beginning(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """Between two polls, so that its size says nothing."""
    log.write()
    log.poll()
    log.path.write_bytes(b"other line\nand another\n")
    log.drain()
    assert log.came[1:] == [b"other line", b"and another"]
    assert "was cut after it was read up to byte 7" in caplog.text


def test_what_takes_the_name_and_cannot_be_read_is_said_once_and_waited_for(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """A rotation that goes wrong must not end the flow."""
    log.write()
    log.poll()
    log.path.rename(f"{log.path}.1")
    log.path.mkdir()
    log.drain()
    log.drain()
    log.path.rmdir()
    log.write()
    log.drain()
    assert log.came == log.written
    assert caplog.text.count("is a folder") == 1


def test_a_rotated_file_among_those_of_the_glob_is_not_read_for_another(tmp_path: Path) -> None:
    """It is a partition of its own."""
    for name in ("in.log", "in.log.1"):
        (tmp_path / name).write_bytes(b"%s\n" % name.encode())
    clock = Clock()
    source = FileSource(f"{tmp_path}/in.log*", follow=True, clock=clock)
    assert len(source.list_parts()) == 2
    partition = source.build_part("in", f"{tmp_path}/in.log", None)
    assert payloads_in(poll(partition) or []) == [b"in.log"]
    (tmp_path / "in.log").rename(tmp_path / "away")
    (tmp_path / "in.log").write_bytes(b"new\n")
    came = []
    for _ in range(4):
        came += payloads_in(poll(partition) or [])
        clock.now += GRACE_US
    assert came == [b"new"]
    partition.close()
