"""Recovery on by default: one folder, whoever comes first, and the same command started over with it."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from bytewax.recovery import init_db_dir

from tests.support.places import ROOT
from tidegate.flows.runtime import recovery

VARIABLE = "BYTEWAX_RECOVERY_DIRECTORY"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_folder_is_made_once(tmp_path: Path, parts: int) -> None:
    """A second start finds what the first one left."""
    folder = recovery.prepare(tmp_path / "new" / "state", parts, 16)
    lineage = recovery.lineage(tmp_path / "new" / "state")
    made = {path.name: path.read_bytes() for path in folder.glob("*.sqlite3")}
    assert len(made) == parts
    assert lineage
    assert recovery.prepare(tmp_path / "new" / "state", parts, 16) == folder
    assert {path.name: path.read_bytes() for path in folder.glob("*.sqlite3")} == made
    assert recovery.lineage(tmp_path / "new" / "state") == lineage


def test_another_number_of_shards_is_refused(tmp_path: Path) -> None:
    """A customer would be looked for where nothing is known of it, and be counted from zero."""
    recovery.prepare(tmp_path, 1, 16)
    with pytest.raises(recovery.RecoveryError, match=r"made with 16,.*TIDEGATE_SHARDS=16"):
        recovery.prepare(tmp_path, 1, 32)
    recovery.prepare(tmp_path, 1, 16)


def test_another_number_of_parts_is_refused(tmp_path: Path) -> None:
    """It was ignored without a word, and raising it for more processes failed only when they started."""
    recovery.prepare(tmp_path, 2, 16)
    with pytest.raises(recovery.RecoveryError, match=r"made with 2,.*TIDEGATE_RECOVERY_PARTS=2"):
        recovery.prepare(tmp_path, 3, 16)


def test_a_folder_of_an_earlier_version_is_guarded_too(tmp_path: Path) -> None:
    """It has the number of shards alone; parts are counted."""
    folder = recovery.prepare(tmp_path, 2, 16)
    (folder / "settings.json").unlink()
    (folder / "shards").write_text("16")
    assert recovery.prepare(tmp_path, 2, 16) == folder
    for parts, shards in ((1, 16), (2, 8)):
        with pytest.raises(recovery.RecoveryError, match="can't be changed"):
            recovery.prepare(tmp_path, parts, shards)


def test_each_folder_has_a_lineage_of_its_own(tmp_path: Path) -> None:
    """By it a sink knows whether the lengths it wrote down are of this recovery store."""
    for name in ("one", "two"):
        recovery.prepare(tmp_path / name, 1, 16)
    assert recovery.lineage(tmp_path / "one") != recovery.lineage(tmp_path / "two")


@pytest.mark.parametrize("point", range(8))
def test_dying_on_the_way_leaves_nothing_half_made(tmp_path: Path, point: int) -> None:
    """Whatever line the first start died at, the second has all parts and a whole lineage."""
    script = """
import os, sys, pathlib
from tidegate.flows.runtime import recovery
left = int(sys.argv[2])
def trace(frame, event, argument):
    global left
    if frame.f_code is not recovery.prepare.__code__:
        return None
    left -= event == 'line'
    if left < 0:
        os._exit(9)
    return trace
sys.settrace(trace)
recovery.prepare(pathlib.Path(sys.argv[1]), 2, 16)
"""
    first = subprocess.run([sys.executable, "-c", script, str(tmp_path / "state"), str(point)], cwd=ROOT)
    assert first.returncode in (0, 9)
    folder = recovery.prepare(tmp_path / "state", 2, 16)
    assert len(list(folder.glob("part-*.sqlite3"))) == 2
    assert len(recovery.lineage(tmp_path / "state")) == 32


def test_a_torn_lineage_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one would tell sinks that nothing is ever replayed."""

    class Died(BaseException):
        pass

    def torn(path: Path, text: str) -> int:
        with path.open("w") as file:
            file.write(text[:7] if path.name == "lineage" else text)
        if path.name == "lineage":
            raise Died
        return len(text)

    monkeypatch.setattr(Path, "write_text", torn)
    with pytest.raises(Died):
        recovery.prepare(tmp_path, 1, 16)
    monkeypatch.undo()
    recovery.prepare(tmp_path, 1, 16)
    assert len(recovery.lineage(tmp_path)) == 32


def test_parts_that_were_half_made_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first start was killed while Bytewax made the parts."""

    class Died(BaseException):
        pass

    def half(folder: Path, parts: int) -> None:
        init_db_dir(folder, parts)
        (folder / "part-1.sqlite3").unlink()
        raise Died

    monkeypatch.setattr(recovery, "init_db_dir", half)
    with pytest.raises(Died):
        recovery.prepare(tmp_path, 3, 16)
    monkeypatch.undo()
    folder = recovery.prepare(tmp_path, 3, 16)
    assert len(list(folder.glob("part-*.sqlite3"))) == 3


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    script = """
import sys, pathlib
from tidegate.flows.runtime import recovery
print('ready', flush=True)
sys.stdin.readline()
recovery.prepare(pathlib.Path(sys.argv[1]), 2, 16)
print(recovery.lineage(pathlib.Path(sys.argv[1])))
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "state")],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(set(said)) == 1
    assert len(list((tmp_path / "state" / "recovery").glob("part-*.sqlite3"))) == 2


@pytest.mark.parametrize(
    ("arguments", "variable", "on"),
    [
        ([], None, False),
        (["-w", "2", "tidegate.flows.metering"], None, False),
        (["-r", "db", "tidegate.flows.metering"], None, True),
        (["--recovery-directory", "db", "tidegate.flows.metering"], None, True),
        (["--recovery-directory=db", "tidegate.flows.metering"], None, True),
        (["tidegate.flows.metering"], "db", True),
    ],
)
def test_recovery_is_on_where_bytewax_was_told_of_a_folder(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], variable: str | None, on: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    if variable is not None:
        monkeypatch.setenv(VARIABLE, variable)
    assert recovery.is_on() is on


def test_starting_over_is_the_same_command_with_recovery_on(tmp_path: Path) -> None:
    """The same process, arguments and interpreter options; and only once."""
    (tmp_path / "command.py").write_text(f"""
import json, os, sys
from datetime import timedelta
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tidegate.flows.runtime import recovery
if not recovery.is_on():
    print('first', flush=False)
    os.environ['FIRST'] = str(os.getpid())
    recovery.start_over(Path('folder'), timedelta(seconds=7))
names = ('BYTEWAX_RECOVERY_DIRECTORY', 'BYTEWAX_SNAPSHOT_INTERVAL', 'BYTEWAX_RECOVERY_BACKUP_INTERVAL')
print(json.dumps([os.getpid() == int(os.environ['FIRST']), sys.argv, sys.flags.optimize,
    [os.environ[name] for name in names]]))
""")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BYTEWAX")}
    for command in (["command.py", "a b", "--c"], ["-m", "command", "a b", "--c"]):
        done = subprocess.run(
            [sys.executable, "-O", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        first, last = done.stdout.splitlines()
        assert first == "first"
        same, arguments, optimize, variables = json.loads(last)
        assert (same, arguments[1:], optimize) == (True, ["a b", "--c"], 1)
        assert variables == ["folder/recovery", "7", "0"]


def test_what_was_chosen_by_variable_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: begun.append(arguments))
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("BYTEWAX_SNAPSHOT_INTERVAL", "3")
    monkeypatch.setenv("BYTEWAX_RECOVERY_BACKUP_INTERVAL", "60")
    recovery.start_over(tmp_path, timedelta(seconds=10))
    assert len(begun) == 1
    assert os.environ["BYTEWAX_SNAPSHOT_INTERVAL"] == "3"
    assert os.environ["BYTEWAX_RECOVERY_BACKUP_INTERVAL"] == "60"
    assert os.environ[VARIABLE] == str(tmp_path / "recovery")


class Parts:
    """Recovery partitions as runs of Bytewax leave them."""

    def __init__(self, data_dir: Path, count: int) -> None:
        self.data_dir = data_dir
        folder = recovery.prepare(data_dir, count, 16)
        self.paths = sorted(folder.glob("part-*.sqlite3"))

    def wrote(self, part: int, table: str, *values: object) -> None:
        columns = {
            "exs": "ex_num, worker_count, resume_epoch",
            "fronts": "ex_num, worker_index, worker_frontier",
            "snaps": "step_id, state_key, snap_epoch, ser_change",
        }[table]
        with closing(sqlite3.connect(self.paths[part])) as db, db:
            db.execute(f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(values))})", values)

    def snapshots(self) -> list[tuple[str, int]]:
        """Keys and epochs, after the next start."""
        recovery.prepare(self.data_dir, len(self.paths), 16)
        found = []
        for path in self.paths:
            with closing(sqlite3.connect(path)) as db:
                found += db.execute("SELECT state_key, snap_epoch FROM snaps").fetchall()
        return sorted(found)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """A run of three workers from epoch 1 on, and one of two from 3. One key in each partition."""
    parts = Parts(tmp_path, 2)
    for part, run in enumerate([(0, 3, 1), (1, 2, 3)]):
        parts.wrote(part, "exs", *run)
    for epoch in range(2, 8):
        parts.wrote(0, "snaps", "metering.alerts_1", "a", epoch, b"")
        parts.wrote(1, "snaps", "metering.meter", "b", epoch, b"")
    # Of the first run, which counts no more.
    for worker in range(3):
        parts.wrote(worker % 2, "fronts", 0, worker, 3)
    return parts


def test_snapshots_of_an_epoch_cut_short_are_forgotten(parts: Parts) -> None:
    """The next run has an epoch of that number too, and who is not touched in it would go on from the old one."""
    parts.wrote(0, "fronts", 1, 0, 6)
    parts.wrote(1, "fronts", 1, 1, 5)
    assert parts.snapshots() == [(key, epoch) for key in "ab" for epoch in (2, 3, 4)]


def test_a_worker_that_ended_no_epoch_is_where_its_run_began(parts: Parts) -> None:
    parts.wrote(0, "fronts", 1, 0, 6)
    assert parts.snapshots() == [("a", 2), ("b", 2)]


def test_snapshots_stay_while_a_process_may_end_its_epoch(parts: Parts) -> None:
    """Of the last run, such as one that has not noticed yet that another process of its cluster died."""
    parts.wrote(0, "fronts", 1, 0, 6)
    parts.wrote(1, "fronts", 1, 1, 5)
    script = """import sys, pathlib
from tidegate.flows.runtime import recovery
recovery.begin(pathlib.Path(sys.argv[1]))
print('running', flush=True)
sys.stdin.read()"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(parts.data_dir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as last:
        assert last.stdout and last.stdout.readline() == b"running\n"
        assert parts.snapshots() == [(key, epoch) for key in "ab" for epoch in range(2, 8)]
    assert parts.snapshots() == [(key, epoch) for key in "ab" for epoch in (2, 3, 4)]


def test_a_damaged_partition_is_a_clear_error(parts: Parts) -> None:
    parts.paths[1].write_bytes(b"what is this" * 1000)
    with pytest.raises(recovery.RecoveryError, match=r"recovery: can't be read: .*restore it from a backup"):
        parts.snapshots()
