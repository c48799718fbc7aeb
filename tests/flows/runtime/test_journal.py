"""The journal: what a position names is there after any crash, and what came after it is gone."""

import errno
import fcntl
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.places import ROOT
from tidegate.flows.runtime import journal
from tidegate.flows.runtime.journal import KEPT, Appended, Journal, JournalError, Position
from tidegate.operators.metering.snapshot import Frame


def state(body: bytes, whole: bool = False) -> Frame:
    return Frame("state", body, whole)


def ids(body: bytes, hour: int = 7) -> Frame:
    return Frame(f"ids-{hour}-1", body, False)


LIVE = ("ids-7-1",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def opened(folder: Path) -> Iterator[Journal]:
    """The journal of shard 3, at its very beginning."""
    journal = begun(folder)
    yield journal
    let_go(journal)


def begun(folder: Path, position: Position | None = None) -> Journal:
    """The journal of shard 3 at this position."""
    found = Journal(folder, 3, sync=False)
    list(found.resume(position))
    return found


def appended(journal: Journal, frames: list[Frame], live: Collection[str]) -> Position:
    """Appends, and takes the position as Bytewax does."""
    position = pickle.loads(pickle.dumps(journal.append(frames, live)))
    assert type(position) is Position
    return position


def let_go(journal: Journal) -> None:
    """What the death of its process does."""
    journal._lock.close()


def resumed(folder: Path, position: Position | None) -> list[tuple[str, bytes]]:
    """Streams and bodies of the frames that another process finds."""
    journal = Journal(folder, 3, sync=False)
    try:
        return [(frame.stream, frame.body) for frame in journal.resume(position)]
    finally:
        let_go(journal)


def files(folder: Path) -> dict[str, int]:
    """The streams' files and their lengths."""
    return {path.name: path.stat().st_size for path in (folder / "0003").glob("*.log")}


def test_frames_come_back_state_first(folder: Path, opened: Journal) -> None:
    position = appended(opened, [ids(b"one"), state(b"first", whole=True)], LIVE)
    position = appended(opened, [ids(b"two"), state(b"second")], LIVE)
    let_go(opened)
    assert resumed(folder, position) == [
        ("state", b"first"),
        ("state", b"second"),
        ("ids-7-1", b"one"),
        ("ids-7-1", b"two"),
    ]


def test_a_position_names_each_file_and_its_length(folder: Path, opened: Journal) -> None:
    position = appended(opened, [ids(b"12345"), state(b"x", whole=True)], LIVE)
    assert position[:3] == (3, 1, {"ids-7-1.log": 8 + 5, "state-1.log": 8 + 1})
    assert files(folder) == position.lengths


def test_what_came_after_the_position_is_gone(folder: Path, opened: Journal) -> None:
    """The run goes on from an older epoch; what was appended since will be appended again."""
    old = appended(opened, [ids(b"one"), state(b"first", whole=True)], LIVE)
    appended(opened, [ids(b"two"), ids(b"new", hour=8), state(b"second")], (*LIVE, "ids-8-1"))
    appended(opened, [state(b"third", whole=True)], LIVE)
    let_go(opened)
    again = begun(folder, old)
    assert files(folder) == old.lengths
    new = appended(again, [state(b"another")], LIVE)
    let_go(again)
    assert resumed(folder, new) == [("state", b"first"), ("state", b"another"), ("ids-7-1", b"one")]


def test_without_a_position_everything_is_gone(folder: Path, opened: Journal) -> None:
    """The process died before Bytewax had its first snapshot: the source is read from its beginning."""
    appended(opened, [ids(b"one"), state(b"first", whole=True)], LIVE)
    let_go(opened)
    assert resumed(folder, None) == []
    assert files(folder) == {}


def test_a_whole_frame_begins_the_next_generation(folder: Path, opened: Journal) -> None:
    appended(opened, [state(b"first", whole=True)], ())
    appended(opened, [state(b"second")], ())
    position = appended(opened, [state(b"all of it", whole=True)], ())
    assert (position.generation, position.lengths) == (2, {"state-2.log": 8 + 9})
    let_go(opened)
    assert resumed(folder, position) == [("state", b"all of it")]


def test_the_generation_before_can_still_be_gone_back_to(folder: Path, opened: Journal) -> None:
    old = appended(opened, [ids(b"one"), state(b"first", whole=True)], LIVE)
    for _ in range(KEPT):
        appended(opened, [state(b"all", whole=True)], ())
    let_go(opened)
    assert resumed(folder, old) == [("state", b"first"), ("ids-7-1", b"one")]


def test_retired_files_are_deleted_after_some_snapshots(folder: Path, opened: Journal) -> None:
    """Else the disk fills up with hours that nobody can reach."""
    appended(opened, [ids(b"one"), state(b"first", whole=True)], LIVE)
    for _ in range(KEPT + 1):
        assert "ids-7-1.log" in files(folder)
        appended(opened, [state(b"more")], ())
    appended(opened, [state(b"more")], ())
    assert "ids-7-1.log" not in files(folder)


def test_a_snapshot_without_frames_leaves_the_position(folder: Path, opened: Journal) -> None:
    position = appended(opened, [ids(b"one"), state(b"first", whole=True)], LIVE)
    assert appended(opened, [], LIVE) == position


def test_positions_do_not_change_once_given(opened: Journal) -> None:
    """Bytewax may pickle one later than it was given."""
    given = opened.append([state(b"first", whole=True)], ())
    appended(opened, [state(b"second"), ids(b"one")], LIVE)
    assert pickle.loads(pickle.dumps(given)) == (3, 1, {"state-1.log": 8 + 5}, journal.boot_id())


@pytest.fixture
def synced(opened: Journal, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set, the disk has nothing."""
    event = threading.Event()
    monkeypatch.setattr(opened, "_sync", True)
    monkeypatch.setattr(os, "fdatasync", lambda fd: event.wait())
    yield event
    event.set()


def waits_for(synced: threading.Event, act: Callable[[], object]) -> None:
    """It does not end before the disk has all, and then does."""
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    synced.set()
    thread.join(30)
    assert not thread.is_alive()


def test_a_position_is_stored_after_what_it_names(opened: Journal, synced: threading.Event) -> None:
    """Else a crash leaves a position behind that the files do not reach."""
    given = opened.append([state(b"first", whole=True)], ())
    waits_for(synced, lambda: pickle.dumps(given))


def test_frames_are_written_in_the_order_of_their_snapshots(
    folder: Path, opened: Journal, synced: threading.Event
) -> None:
    """Bytewax ends two epochs at once where it fell behind."""
    opened.append([state(b"first", whole=True)], ())
    found: list[Appended] = []
    waits_for(synced, lambda: found.append(opened.append([state(b"second")], ())))
    position = found[0].wait()
    let_go(opened)
    assert resumed(folder, position) == [("state", b"first"), ("state", b"second")]


def test_what_could_not_be_written_is_no_position(
    opened: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is a later one, as it would name what is not there."""
    monkeypatch.setattr(opened, "_sync", True)

    def refuse(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", refuse)
    given = opened.append([state(b"first", whole=True)], ())
    with pytest.raises(OSError, match="No space left"):
        pickle.dumps(given)
    assert "the flow ends: No space left on device; free space" in caplog.text
    with pytest.raises(OSError, match="No space left"):
        opened.append([state(b"second")], ())


def test_each_file_is_timed(folder: Path) -> None:
    seconds: list[float] = []
    opened = Journal(folder, 3, False, seconds.append)
    appended(opened, [ids(b"one"), state(b"first", whole=True)], LIVE)
    assert len(seconds) == 2 and min(seconds) > 0
    let_go(opened)


@pytest.mark.parametrize("lost", ["state-1.log", "ids-7-1.log"])
def test_a_lost_file_is_a_clear_error(folder: Path, opened: Journal, lost: str) -> None:
    position = appended(opened, [ids(b"one"), state(b"first", whole=True)], LIVE)
    let_go(opened)
    (folder / "0003" / lost).unlink()
    with pytest.raises(JournalError, match=rf"{lost}: needs \d+ bytes, has 0; .*kept and restored together"):
        resumed(folder, position)


def test_a_short_file_is_a_clear_error(folder: Path, opened: Journal) -> None:
    position = appended(opened, [ids(b"one"), state(b"first", whole=True)], LIVE)
    let_go(opened)
    os.truncate(folder / "0003" / "state-1.log", 12)
    with pytest.raises(JournalError, match=r"state-1\.log: needs 13 bytes, has 12"):
        resumed(folder, position)


@pytest.mark.parametrize("at", range(8 + len(b"first")))
def test_a_damaged_byte_is_a_clear_error(folder: Path, opened: Journal, at: int) -> None:
    """In the length, the checksum or the body: no total is ever built from it."""
    position = appended(opened, [state(b"first", whole=True)], ())
    let_go(opened)
    path = folder / "0003" / "state-1.log"
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 0x10
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match="damaged"):
        resumed(folder, position)


def test_a_position_within_a_frame_is_a_clear_error(folder: Path, opened: Journal) -> None:
    position = appended(opened, [state(b"first", whole=True)], ())
    let_go(opened)
    for length in range(1, 13):
        os.truncate(folder / "0003" / "state-1.log", length)
        with pytest.raises((JournalError, struct.error)):
            resumed(folder, position._replace(lengths={"state-1.log": length}))


def test_one_owner_at_a_time(folder: Path, opened: Journal) -> None:
    """Two flows on one journal would count each other's events away."""
    with pytest.raises(JournalError, match=r"another process holds this shard; stop it"):
        Journal(folder, 3)
    let_go(Journal(folder, 4))


def test_the_lock_dies_with_its_process(folder: Path) -> None:
    script = """import sys, pathlib, tidegate.flows.runtime.journal
journal = tidegate.flows.runtime.journal.Journal(pathlib.Path(sys.argv[1]), 3)
print('held', flush=True)
sys.stdin.read()"""
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with owner:
        assert owner.stdout and owner.stdout.readline() == b"held\n"
        with pytest.raises(JournalError, match="another process"):
            Journal(folder, 3)
        owner.kill()
    let_go(Journal(folder, 3))


@pytest.mark.parametrize("sync", [True, False])
def test_sync_forces_files_and_folder_to_disk_before_the_position(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    """The position is worth nothing if a power cut takes back what it names."""
    synced: list[str] = []

    def note(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    monkeypatch.setattr(os, "fdatasync", note)
    monkeypatch.setattr(os, "fsync", note)
    opened = Journal(folder, 3, sync=sync)
    list(opened.resume(None))
    appended(opened, [ids(b"one"), state(b"first", whole=True)], LIVE)
    assert sorted(synced) == (["0003", "ids-7-1.log", "state-1.log"] if sync else [])
    synced.clear()
    appended(opened, [state(b"second")], LIVE)
    assert synced == (["state-1.log"] if sync else [])
    let_go(opened)


def test_shards_do_not_meet(folder: Path) -> None:
    one, two = Journal(folder, 1, sync=False), Journal(folder, 2, sync=False)
    at = appended(one, [state(b"one", whole=True)], ())
    appended(two, [state(b"two", whole=True)], ())
    list(two.resume(None))
    let_go(one)
    again = Journal(folder, 1, sync=False)
    assert [frame.body for frame in again.resume(at)] == [b"one"]
    let_go(again)
    let_go(two)


lives = st.lists(
    st.tuples(
        st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=3), st.booleans()), max_size=5),
        st.integers(0, 6),
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None, database=None)
@given(lives, st.integers(0, 2**32))
def test_any_crash_goes_back_to_the_snapshot_that_counts(
    tmp_path_factory: pytest.TempPathFactory, lives: list[Any], seed: int
) -> None:
    """Runs append, die with torn writes, and go on from one of the last snapshots, as Bytewax does."""
    folder = tmp_path_factory.mktemp("journal")
    rng = random.Random(seed)
    taken: list[tuple[Position | None, list[tuple[str, bytes]]]] = [(None, [])]
    for snapshots, back in lives:
        del taken[max(1, len(taken) - back) :]
        position, wanted = taken[-1]
        assert sorted(resumed(folder, position)) == sorted(wanted)
        # Bytewax never goes back behind where it went on from.
        taken = taken[-1:]
        opened = begun(folder, position)
        for hours, whole in snapshots:
            first = not any(stream == "state" for stream, _ in wanted)
            frames = [ids(rng.randbytes(rng.randint(0, 40)), hour) for hour in hours]
            frames.append(state(rng.randbytes(5), whole or first))
            if frames[-1].whole:
                wanted = [each for each in wanted if each[0] != "state"]
            wanted = [*wanted, *((frame.stream, frame.body) for frame in frames)]
            taken.append((appended(opened, frames, {stream for stream, _ in wanted} - {"state"}), wanted))
        let_go(opened)
        for path in (folder / "0003").glob("*.log"):
            # A write that was under way.
            with path.open("ab") as file:
                file.write(rng.randbytes(rng.randint(0, 30)))


def test_the_lock_is_not_inherited_by_children(opened: Journal) -> None:
    """Else a child that outlives the flow would keep the shard."""
    assert fcntl.fcntl(opened._lock, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_kept_is_more_than_bytewax_goes_back() -> None:
    """Bytewax goes on from the last epoch that all workers ended, at most a few before the newest."""
    assert journal.KEPT >= 4
