import itertools
import math
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.connectors.contracts.sink import Place, Sink, SinkContract
from tests.connectors.contracts.source import (
    Partition,
    Source,
    SourceContract,
    payloads_in,
    poll,
    read,
)
from tidegate.connectors.files import partition as file_partition
from tidegate.connectors.files.ndjson import DirSink, FileError, FilePosition, FileSink, FileSource, Written
from tidegate.operators.model.ports import Payloads

START = 1_700_000_000_000_000


class Clock:
    """Microseconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


class FileContract(SourceContract):
    newline: ClassVar[bytes] = b"\n"
    ending: ClassVar[bytes] = b"\n"
    poll_bytes: ClassVar[int] = 48

    def source(self, path: str, follow: bool = False) -> Source:
        return FileSource(path, follow, self.poll_bytes)

    @contextmanager
    def holding(self, payloads: list[bytes]) -> Iterator[Callable[[], Source]]:
        with TemporaryDirectory() as directory:
            path = Path(directory) / "in.ndjson"
            path.write_bytes(self.newline.join(payloads) + (self.ending if payloads else b""))
            yield lambda: self.source(str(path))

    @contextmanager
    def waiting(self) -> Iterator[Partition]:
        with TemporaryDirectory() as directory:
            path = Path(directory) / "in.ndjson"
            path.write_bytes(b'{"id":"1"}\n{"id":')
            partition = self.source(str(path), follow=True).build_part("in", str(path), None)
            got: list[Payloads] = []
            while not got:
                got = read(partition, 1)
            assert payloads_in(got) == [b'{"id":"1"}']
            try:
                yield partition
            finally:
                partition.close()


class TestLines(FileContract):
    pass


class TestNoNewlineAtTheEnd(FileContract):
    ending = b""


class TestWindowsLines(FileContract):
    newline = ending = b"\r\n"


class TestAByteAPoll(FileContract):
    poll_bytes = 1


class TestUsualPolls(FileContract):
    poll_bytes = 1 << 20


class TestGlob(FileContract):
    @contextmanager
    def holding(self, payloads: list[bytes]) -> Iterator[Callable[[], Source]]:
        with TemporaryDirectory() as directory:
            for n in range(3):
                lines = payloads[n::3]
                Path(directory, f"{n}.ndjson").write_bytes(b"".join(line + b"\n" for line in lines))
            yield lambda: self.source(f"{directory}/*.ndjson")


class TestStandardInput(FileContract):
    """Not resumable: only that every payload comes, and that no poll waits."""

    def test_it_resumes_anywhere(self) -> None:
        with self.holding([b"1"]) as opened:
            assert opened().build_part("in", "-", None).snapshot() is None

    @contextmanager
    def holding(self, payloads: list[bytes]) -> Iterator[Callable[[], Source]]:
        reader, writer = os.pipe()
        os.write(writer, b"\n".join(payloads))
        os.close(writer)
        yield lambda: FileSource("-", poll_bytes=self.poll_bytes, stdin=reader)
        os.close(reader)

    @contextmanager
    def waiting(self) -> Iterator[Partition]:
        reader, writer = os.pipe()
        os.write(writer, b'{"id":')
        yield FileSource("-", stdin=reader).build_part("in", "-", None)
        os.close(reader)
        os.close(writer)


contents = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from([b"\n", b"\r\n", b"\n\n", b"x" * 200 + b"\n", "é€😀\n".encode(), b'{"id":"1"}\n']),
    ),
    max_size=20,
).map(b"".join)


@settings(deadline=None)
@given(
    contents,
    st.integers(1, 100),
    st.sampled_from([1, 8, 30, 64 << 10]),
    st.lists(st.integers(0, 8), max_size=4),
)
def test_blocks_are_the_file_cut_at_newlines(
    content: bytes, poll_bytes: int, line_span: int, stops: list[int]
) -> None:
    """The decoder sees the producer's own bytes, so that ids and amounts survive untouched."""
    with TemporaryDirectory() as directory, patch.object(file_partition, "LINE_SPAN", line_span):
        path = f"{directory}/in"
        Path(path).write_bytes(content)
        source = FileSource(path, poll_bytes=poll_bytes)
        items: list[Payloads] = []
        state = None
        for stop in [*stops, 10_000]:
            partition = source.build_part("in", path, state)
            items += read(partition, stop) if stop < 10_000 else read(partition)
            state = partition.snapshot()
            assert state is not None and state.offset == sum(len(item.block) for item in items)
            partition.close()
    assert b"".join(item.block for item in items) == content
    assert all(item.block.endswith(b"\n") for item in items[:-1])
    offsets = itertools.accumulate((len(item.block) for item in items), initial=0)
    assert [item.origin for item in items] == [f"{path}:{at}" for at, _ in zip(offsets, items, strict=False)]
    for item in items:
        # Not above poll_bytes, except where the first line is.
        first = len(item.block.split(b"\n")[0]) + 1
        assert len(item.block) <= poll_bytes * math.ceil(first / poll_bytes)


class Followed:
    """A file a test appends to, the partition that follows it, and the clock of both."""

    def __init__(self, path: Path, state: FilePosition | None = None) -> None:
        self.path = path
        self.clock = Clock()
        self.source = FileSource(str(path), follow=True, poll_bytes=64, clock=self.clock)
        self.partition = self.source.build_part("in", str(path), state)

    def append(self, content: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(content)

    def polled(self) -> bytes | None:
        batch = poll(self.partition)
        return None if batch is None else b"".join(item.block for item in batch)

    def pause(self) -> int | None:
        awake = self.partition.next_awake()
        return None if awake is None else round(awake.timestamp() * 1e6) - self.clock.now


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    path = tmp_path / "in.ndjson"
    path.touch()
    return Followed(path)


def test_a_followed_line_comes_with_the_poll_after_its_newline(followed: Followed) -> None:
    """The gate closes on the event that fills the cap, not on the one after it."""
    assert followed.polled() == b""
    followed.append(b'{"id":')
    assert followed.polled() == b""
    followed.append(b'"1"}')
    assert followed.polled() == b""
    followed.append(b"\n")
    assert followed.polled() == b'{"id":"1"}\n'
    assert followed.polled() == b""


@settings(deadline=None)
@given(contents, st.lists(st.integers(0, 60), max_size=20))
def test_following_gives_the_same_lines_however_they_are_written(content: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    with TemporaryDirectory() as directory:
        path = Path(directory) / "in"
        path.touch()
        state, got = None, b""
        for start, end in itertools.pairwise(edges):
            # A new life with every write, so that each unfinished line is also resumed at.
            followed = Followed(path, state)
            followed.append(content[start:end])
            while (block := followed.polled()) or followed.pause() is None:
                got += block or b""
            state = pickle.loads(pickle.dumps(followed.partition.snapshot()))
            followed.partition.close()
    assert got == content[: content.rfind(b"\n") + 1]


def test_a_follower_polls_at_once_then_each_millisecond_then_each_five(followed: Followed) -> None:
    """Within a few milliseconds while events come, and next to no work while none do."""
    followed.append(b"1\n")
    followed.polled()
    assert followed.pause() is None
    followed.polled()
    assert followed.pause() == 1000
    followed.clock.now += 999_999
    followed.polled()
    assert followed.pause() == 1000
    followed.clock.now += 1
    followed.polled()
    assert followed.pause() == 5000
    followed.append(b"2\n")
    followed.polled()
    assert followed.pause() is None


def test_received_at_is_when_it_was_read(followed: Followed) -> None:
    followed.append(b"1\n")
    followed.clock.now += 7
    (item,) = followed.partition.next_batch()
    assert (item.received_at, item.transport_time) == (START + 7, None)


def test_a_followed_file_may_appear_later(tmp_path: Path) -> None:
    """The meter can be started before the producer."""
    followed = Followed(tmp_path / "later")
    assert followed.polled() == b""
    state = followed.partition.snapshot()
    followed.append(b"1\n")
    assert followed.polled() == b"1\n"
    assert Followed(followed.path, state).polled() == b"1\n"


def resumed(path: Path, content: bytes, changed: bytes | None, polls: int = 1) -> Partition:
    path.write_bytes(content)
    source = FileSource(str(path), poll_bytes=8192)
    partition = source.build_part("in", str(path), None)
    read(partition, polls)
    state = partition.snapshot()
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    return source.build_part("in", str(path), state)


LINES = b"".join(b'{"id":"%06d"}\n' % n for n in range(2000))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (LINES[:5000], "has 5000 bytes where 32000 were seen"),
        (LINES[:-1], "has 31999 bytes where 32000 were seen"),
        (b"X" + LINES[1:], "holds other bytes"),
        (LINES[:8000] + b"X" + LINES[8001:], "holds other bytes"),
        (None, "is gone"),
        (b"", "has 0 bytes"),
    ],
)
def test_resuming_on_another_file_is_an_error(tmp_path: Path, changed: bytes | None, message: str) -> None:
    """Metering from the middle of an unrelated file would bill garbage."""
    with pytest.raises(FileError, match=message):
        resumed(tmp_path / "in", LINES, changed)


def test_resuming_on_a_grown_file_reads_on(tmp_path: Path) -> None:
    partition = resumed(tmp_path / "in", LINES, LINES + b"more\n")
    assert payloads_in(read(partition)) == [*LINES.split()[512:], b"more"]


def test_a_last_line_that_was_only_ended_is_not_read_again(tmp_path: Path) -> None:
    assert payloads_in(read(resumed(tmp_path / "in", b"1\n2", b"1\n2\n3\n", 3))) == [b"3"]
    assert payloads_in(read(resumed(tmp_path / "in", b"1\n2", b"1\n2\r\n3\n", 3))) == [b"3"]
    ended = resumed(tmp_path / "in", b"1\n2", b"1\n2\n" + LINES, 3)
    assert payloads_in(read(ended)) == LINES.split()


@pytest.mark.parametrize("first", [b"1\n", b"", LINES])
def test_a_last_line_that_was_completed_is_read_again_whole(
    tmp_path: Path, first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Its beginning alone was no event; whatever it was, the whole line is judged by its own identity."""
    partition = resumed(tmp_path / "in", first + b'{"id":', first + b'{"id":"7"}\n3\n', 9)
    assert payloads_in(read(partition)) == [b'{"id":"7"}', b"3"]
    assert f"whole, from byte {len(first)} on" in caplog.text
    state = partition.snapshot()
    again = FileSource(f"{tmp_path}/in").build_part("in", f"{tmp_path}/in", state)
    assert read(again) == []


def test_a_change_inside_of_what_was_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was counted stays; the log names a changed file that is not read again."""
    changed = LINES[:10_000] + b"X" + LINES[10_001:]
    partition = resumed(tmp_path / "in", LINES, changed, 3)
    assert payloads_in(read(partition)) == LINES[24576:].split()
    assert "was changed before byte 24576" in caplog.text


def test_a_position_of_the_version_before_counts(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"1\n2\n")
    source = FileSource(str(path))
    partition = source.build_part("in", str(path), None)
    read(partition)
    state = partition.snapshot()
    old = pickle.loads(pickle.dumps(FilePosition(*state[:3])))
    path.write_bytes(b"1\n2\n3\n")
    for follow in (False, True):
        resumed = FileSource(str(path), follow).build_part("in", str(path), old)
        assert payloads_in(read(resumed, 1)) == [b"3"]


def test_after_the_last_line_the_file_has_ended_though_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"1\n2")
    partition = FileSource(str(path)).build_part("in", str(path), None)
    assert payloads_in(read(partition, 3)) == [b"1", b"2"]
    path.write_bytes(b"1\n25\n")
    assert poll(partition) is None


@pytest.mark.parametrize("more", [b"", b"\n", b"x" * 60, b"x" * 60 + b"\nnext\nlast"])
@pytest.mark.parametrize("polls", range(1, 12))
def test_a_line_over_its_limit_is_cut_and_the_next_one_is_whole(
    tmp_path: Path, more: bytes, polls: int, caplog: pytest.LogCaptureFixture
) -> None:
    """One byte more than may be, so that the decoder rejects it; and nobody else's lines are held up by it."""
    path = tmp_path / "in"
    path.write_bytes(b"short\n" + b"x" * 25 + b"\n" + b"x" * 26 + more)
    source = FileSource(str(path), poll_bytes=10, line_bytes_max=25)
    partition = source.build_part("in", str(path), None)
    items = read(partition, polls)
    resumed = source.build_part("in", str(path), pickle.loads(pickle.dumps(partition.snapshot())))
    items += read(resumed)
    expected = [b"short", b"x" * 25, b"x" * 26, *more.split()[1 if more.startswith(b"x") else 0 :]]
    assert payloads_in(items) == expected
    assert "the line at byte 32 is longer than 25 bytes" in caplog.text


def test_a_long_line_of_standard_input_is_cut_too() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"1\n" + b"x" * 100 + b"\n2\n" + b"y" * 40 + b"\n3")
    os.close(writer)
    source = FileSource("-", poll_bytes=16, line_bytes_max=20, stdin=reader)
    items = read(source.build_part("in", "-", None))
    assert payloads_in(items) == [b"1", b"x" * 21, b"2", b"y" * 21, b"3"]
    os.close(reader)


def test_a_poll_needs_a_size_below_the_longest_line() -> None:
    with pytest.raises(ValueError, match="poll_bytes: needs 1 to line_bytes_max"):
        FileSource("x", poll_bytes=0)
    with pytest.raises(ValueError, match="poll_bytes"):
        FileSource("x", poll_bytes=11, line_bytes_max=10)


def test_a_glob_is_one_partition_per_file_in_order(tmp_path: Path) -> None:
    for name in ("b.ndjson", "a.ndjson", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.ndjson").mkdir()
    source = FileSource(f"{tmp_path}/*.ndjson")
    assert source.list_parts() == [f"{tmp_path}/a.ndjson", f"{tmp_path}/b.ndjson"]


def test_a_glob_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none found in .*; check the pattern"):
        FileSource(f"{tmp_path}/*.ndjson", follow=True).list_parts()


def test_a_missing_file_is_an_error_unless_followed(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"not found in .*follow=true"):
        FileSource(f"{tmp_path}/no").build_part("in", f"{tmp_path}/no", None)


def test_a_folder_and_a_file_that_may_not_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"is a folder; name its files"):
        FileSource(f"{tmp_path}").check()
    closed = OSError(13, "Permission denied")
    with patch.object(os, "open", side_effect=closed), pytest.raises(FileError, match="Permission denied"):
        FileSource(f"{tmp_path}/in").check()


def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    """Opening one waits for a writer, and reading one cannot be resumed."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="standard input"):
        FileSource(f"{tmp_path}/pipe").build_part("in", f"{tmp_path}/pipe", None)


def test_standard_input_is_read_as_it_comes_and_to_its_end() -> None:
    reader, writer = os.pipe()
    clock = Clock()
    source = FileSource("-", clock=clock, stdin=reader)
    assert source.list_parts() == ["-"]
    partition = source.build_part("in", "-", None)
    assert poll(partition) == []
    assert partition.next_awake() is not None
    os.write(writer, b"1\n2\n3")
    assert poll(partition) == [Payloads(b"1\n2\n", START, None, "-:0")]
    assert partition.next_awake() is None
    os.close(writer)
    assert poll(partition) == [Payloads(b"3", START, None, "-:4")]
    assert poll(partition) is None
    os.close(reader)


def test_standard_input_comes_in_blocks_of_the_same_size() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"12345\n" * 20)
    os.close(writer)
    items = read(FileSource("-", poll_bytes=16, stdin=reader).build_part("in", "-", None))
    assert b"".join(item.block for item in items) == b"12345\n" * 20
    assert max(len(item.block) for item in items) <= 16
    os.close(reader)


def test_a_closed_partition_gives_its_descriptor_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "in").touch()
    part = FileSource(f"{tmp_path}/in").build_part("in", f"{tmp_path}/in", None)
    part.close()
    sink = FileSink(f"{tmp_path}/out").build_part("out", "0", None)
    sink.close()
    assert len(os.listdir("/proc/self/fd")) == before


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


@pytest.fixture
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crashes of a process lose no write, so the disk need not be waited for."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.mark.usefixtures("no_disk")
class TestFileSink(SinkContract):
    before: ClassVar[bytes] = b""

    @contextmanager
    def place(self) -> Iterator[Place]:
        with TemporaryDirectory() as directory:
            path = Path(directory) / "new" / "out.ndjson"
            if self.before:
                path.parent.mkdir()
                path.write_bytes(self.before)

            def lines() -> list[bytes]:
                content = path.read_bytes()
                assert content.startswith(self.before)
                return content[len(self.before) :].split()

            yield Place(lambda: FileSink(str(path), "store-1", sync=False), lines, lambda: tear(path))


class TestFileSinkOnAnExistingFile(TestFileSink):
    before = b"another run\n"


class TestFileSinkAfterATornLine(TestFileSink):
    before = b"another run\ntorn"


@pytest.mark.usefixtures("no_disk")
class TestDirSink(SinkContract):
    @contextmanager
    def place(self) -> Iterator[Place]:
        with TemporaryDirectory() as directory:
            files = [Path(directory) / f"{n:02d}.ndjson" for n in range(3)]

            def sink() -> Sink:
                return DirSink(directory, 3, "store-1", sync=False)

            yield Place(sink, lambda: [line for f in files for line in lines_of(f)], lambda: tear(files[1]))


def tear(path: Path) -> None:
    """What a kill in the middle of a write leaves."""
    if path.exists():
        with path.open("ab") as file:
            file.write(b"0:1\n1:")


def write(
    path: Path, *lines: bytes, lineage: str = "a", state: Written | None = None, step: str = "out"
) -> Written:
    part = FileSink(str(path), lineage).build_part(step, "0", state)
    part.write_batch(list(lines))
    return part.snapshot()


def test_a_crash_before_the_first_snapshot_leaves_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"0\n")
    write(path, b"1", b"2")
    write(path, b"1", b"2", b"3")
    assert path.read_bytes() == b"0\n1\n2\n3\n"


def test_another_recovery_store_appends(tmp_path: Path) -> None:
    """Starting anew must not destroy what is there."""
    path = tmp_path / "out"
    write(path, b"1")
    write(path, b"2", lineage="b")
    write(path, b"2", b"3", lineage="b")
    assert path.read_bytes() == b"1\n2\n3\n"
    write(path, b"4", lineage="a")
    assert path.read_bytes() == b"1\n2\n3\n4\n"


def test_without_recovery_each_start_appends(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, b"1", lineage="")
    write(path, b"2", lineage="")
    assert path.read_bytes() == b"1\n2\n"


def test_a_start_without_recovery_ends_the_claim_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, b"1", lineage="a")
    write(path, b"2", lineage="")
    write(path, b"3", lineage="a")
    assert path.read_bytes() == b"1\n2\n3\n"


def test_a_renamed_step_keeps_the_lines_of_the_old(tmp_path: Path) -> None:
    """Its snapshots are under the old name, so it starts without one though its lines are settled."""
    path = tmp_path / "out"
    write(path, b"1", step="old")
    write(path, b"2", step="new")
    assert path.read_bytes() == b"1\n2\n"


def test_a_file_emptied_before_the_first_snapshot_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"0\n")
    write(path, b"1")
    path.write_bytes(b"")
    write(path, b"1")
    write(path, b"1")
    assert path.read_bytes() == b"1\n"


def test_resuming_cuts_back_to_the_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "out"
    state = write(path, b"1", b"2")
    assert state == Written(4, 1)
    write(path, b"3", b"4", state=state)
    write(path, b"3", state=pickle.loads(pickle.dumps(state)))
    assert path.read_bytes() == b"1\n2\n3\n"


def test_resuming_on_a_shorter_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "out"
    state = write(path, b"1", b"2")
    os.truncate(path, 3)
    with pytest.raises(FileError, match="has 3 bytes where 4 were written"):
        write(path, b"3", state=state)


def test_resuming_does_not_cut_off_the_lines_of_another_store(tmp_path: Path) -> None:
    path = tmp_path / "out"
    state = write(path, b"1")
    write(path, b"2", lineage="b")
    with pytest.raises(FileError, match="another recovery store"):
        write(path, b"2", state=state)
    assert path.read_bytes() == b"1\n2\n"


def test_resuming_with_other_parts_is_an_error(tmp_path: Path) -> None:
    """Shards would go to other files, and their replay would not be cut off from the old ones."""
    state = DirSink(str(tmp_path), 4, "a").build_part("out", "00", None).snapshot()
    with pytest.raises(FileError, match="one of 4 parts, now there are 8"):
        DirSink(str(tmp_path), 8, "a").build_part("out", "00", state)


def test_a_mark_that_is_not_ours_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out.start").write_bytes(b"mine")
    with pytest.raises(FileError, match=r"out\.start': not written by this sink"):
        write(tmp_path / "out", b"1")
    assert (tmp_path / "out").read_bytes() == b""


def test_a_line_holds_no_newline(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="holds a newline"):
        write(tmp_path / "out", b"1\n2")


def test_only_files_are_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="stdout:"):
        write(Path(os.devnull), b"1")


def test_the_mark_is_there_before_the_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two, the next start must know where this one began."""
    path = tmp_path / "out"
    order: list[str] = []
    replace, write_out = os.replace, os.write

    def replaced(source: Any, target: Any) -> None:
        order.append("mark")
        replace(source, target)

    def written(fd: int, block: Any) -> int:
        order.append("write")
        return write_out(fd, block)

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "write", written)
    path.write_bytes(b"torn")
    write(path, b"1")
    assert order == ["mark", "write", "write"]


def test_short_writes_are_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_out = os.write
    monkeypatch.setattr(os, "write", lambda fd, block: write_out(fd, block[:3]))
    write(tmp_path / "out", b"123456", b"789")
    assert (tmp_path / "out").read_bytes() == b"123456\n789\n"


@pytest.mark.parametrize(("fsync", "calls"), [(True, 2), (False, 0)])
def test_a_snapshot_syncs_what_was_written_since_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool, calls: int
) -> None:
    """After a power cut the file is as long as the recovery store says, not shorter."""
    part = FileSink(f"{tmp_path}/out", "a", fsync).build_part("out", "0", None)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for lines in ([b"1"], [], [b"2"]):
        part.write_batch(lines)
        part.snapshot()
    assert len(synced) == calls


def test_shards_go_to_their_file_and_names_sort_as_numbers(tmp_path: Path) -> None:
    sink = DirSink(str(tmp_path), 101, "a")
    names = sink.list_parts()
    assert names == sorted(names) and len(names) == 101
    assert [sink.part_fn(str(shard)) for shard in (0, 7, 100, 101, 256)] == [0, 7, 100, 0, 54]
    assert DirSink("d", 4).list_parts() == ["00", "01", "02", "03"]
    sink.build_part("out", "007", None).write_batch([b"x"])
    assert (tmp_path / "007.ndjson").read_bytes() == b"x\n"
    with pytest.raises(ValueError, match="parts: needs 1 or more"):
        DirSink("d", 0)
