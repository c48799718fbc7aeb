"""Recovery on by default: the folder that Bytewax keeps its snapshots in, made and handed to `bytewax.run`.

`python -m bytewax.run` takes recovery from its command line or from BYTEWAX_… variables, and reads them before it
imports the flow. So a flow that finds itself started without them starts its own command over, in the same process,
with the variables set, and makes the folder then.

Bytewax leaves the snapshots of an epoch that a kill cut short. Its number comes again in the next run, and who is not
touched in that epoch then, such as an output that gets no line, would later go on from the old one: an output cut in
the wrong place, a shard ahead of its source. So they are deleted before each run.

Source: https://docs.bytewax.io/stable/guide/concepts/recovery.html, and `resume_from` in Bytewax 0.21's src/recovery.rs
"""

import argparse
import fcntl
import os
import shutil
import sqlite3
import sys
import uuid
from collections.abc import Iterable
from contextlib import ExitStack, closing
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, TextIO

from tidegate.connectors.engine import init_db_dir
from tidegate.connectors.files.locks import is_held
from tidegate.connectors.files.private_files import make_private_folder
from tidegate.connectors.sqlite.connection import connect, transaction
from tidegate.flows.runtime import moved_classes, recorded_settings
from tidegate.operators.model.errors import TidegateError

_VARIABLE = "BYTEWAX_RECOVERY_DIRECTORY"
_FOLDER = "recovery"
_VERSION = version("tidegate")
_RUNNING = "running.lock"

# Locks end with their file, so these are kept until the process ends.
_HELD: list[TextIO] = []


class RecoveryError(TidegateError):
    """The recovery store can't be used as asked; says what to do."""


def is_on() -> bool:
    """Whether `bytewax.run` was given a recovery folder."""
    return _VARIABLE in os.environ or any(
        argument in ("-r", "--recovery-directory") or argument.startswith("--recovery-directory=")
        for argument in sys.argv
    )


def prepare(data_dir: Path, parts: int, shards: int) -> Path:
    """Prepare and return the recovery folder under `data_dir`: made if missing, without what a kill cut short.

    Safe if several processes start at once, but before Bytewax opens it: of two copies of SQLite in one process each
    would let go of the other's locks. RecoveryError where it was made for other settings
    (flows/runtime/recorded_settings.py).
    """
    folder, asked = data_dir / _FOLDER, recorded_settings.Recorded(shards, parts)
    make_private_folder(data_dir)
    with (data_dir / "recovery.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            if (data_dir / "journal").exists():
                raise RecoveryError(
                    f"{data_dir / 'journal'}: is there without its recovery store {folder}; restore both together,"
                    " or remove the journal to count anew from the source's beginning"
                )
            # Made aside and then named, so that a start that dies on the way leaves nothing half made.
            made = data_dir / "recovery.new"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            init_db_dir(made, parts)
            recorded_settings.write(made, asked)
            (made / "lineage").write_text(uuid.uuid4().hex)
            made.rename(folder)
        _check_whole(folder)
        if different := recorded_settings.difference(folder, asked):
            raise RecoveryError(different)
        if newer := recorded_settings.newer(folder):
            raise RecoveryError(newer)
        if recorded_settings.read(folder).format < recorded_settings.FORMAT:
            moved_classes.rewrite(folder)
            recorded_settings.write(folder, recorded_settings.read(folder))
        _discard_unfinished(data_dir)
    return folder


def hold(data_dir: Path) -> None:
    """Mark `data_dir` as in use by this process of a flow, for as long as the process lives.

    RecoveryError where another one has the same process id: Bytewax would take the later start for the one to go on
    from, and the earlier flow's snapshots would be lost. And where a process of another version runs: what crosses
    between them is pickled, and need not be the same.
    """
    process = process_id()
    with (data_dir / "recovery.lock").open("w") as turn:
        # One at a time, as each looks at the others' locks.
        fcntl.flock(turn, fcntl.LOCK_EX)
        lock = (data_dir / f"process-{process}.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecoveryError(
                f"{data_dir}: another flow runs on it as process {process}; stop it before starting a second one, or"
                " give this one another TIDEGATE_DATA_DIR"
            ) from None
        _HELD.append(lock)
        lock.truncate(0)
        lock.write(_VERSION)
        lock.flush()
        _check_versions(data_dir, f"process-{process}.lock")


def _check_versions(data_dir: Path, own: str) -> None:
    """Raise RecoveryError where a process of another version runs."""
    for path in data_dir.glob("process-*.lock"):
        if path.name == own:
            continue
        other = _version_running(path)
        if other not in (None, _VERSION):
            raise RecoveryError(
                f"{data_dir}: a process of version {other or 'unknown'} runs on it, and this one is {_VERSION};"
                " a cluster is of one version: stop all of its processes, then start all of the new ones"
            )


def _version_running(path: Path) -> str | None:
    """Return the version of the process that holds this lock, None where none does."""
    return path.read_text() if is_held(path) else None


def begin(data_dir: Path) -> None:
    """Mark the flow on `data_dir` as running. Called as Bytewax builds it, when all its processes have started."""
    lock = (data_dir / _RUNNING).open("a+")
    fcntl.flock(lock, fcntl.LOCK_SH)
    _HELD.append(lock)


def _check_whole(folder: Path) -> None:
    """Raise RecoveryError where a part of the recovery store is gone."""
    for number in range(recorded_settings.read(folder).recovery_parts):
        path = folder / f"part-{number}.sqlite3"
        if not path.exists():
            raise RecoveryError(
                f"{path}: is missing; restore {folder.parent} as a whole from a backup, or move it away to count"
                " again from the source's beginning"
            )


def _discard_unfinished(data_dir: Path) -> None:
    """Delete snapshots of epochs that did not end, unless a process is left that might still end them."""
    with ExitStack() as opened:
        running = opened.enter_context((data_dir / _RUNNING).open("a+"))
        try:
            fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # It waits for the one that died, and will have ended when the last process of the next run starts.
            return
        paths = sorted((data_dir / _FOLDER).glob("part-*.sqlite3"))
        try:
            parts = [opened.enter_context(closing(connect(path, "rw"))) for path in paths]
            epoch = _resume_epoch(parts)
            for part in parts:
                with transaction(part):
                    part.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (epoch,))
        except sqlite3.Error as error:
            advice = "free space and start again" if "full" in str(error) else "restore it from a backup"
            raise RecoveryError(f"{data_dir / _FOLDER}: can't be read: {error}; {advice}") from None


def _resume_epoch(parts: Iterable[sqlite3.Connection]) -> int:
    """Return the epoch that the next run begins with: the first that a worker of the last run had not ended."""
    runs: dict[int, tuple[int, int]] = {}
    ended: list[tuple[int, int, int]] = []
    for part in parts:
        for run, workers, epoch in part.execute("SELECT ex_num, worker_count, resume_epoch FROM exs"):
            runs[run] = workers, epoch
        ended += part.execute("SELECT ex_num, worker_index, worker_frontier FROM fronts")
    if not runs:
        return 1
    last = max(runs)
    workers, first = runs[last]
    reached = dict.fromkeys(range(workers), first)
    reached.update((worker, epoch) for run, worker, epoch in ended if run == last)
    return min(reached.values())


def process_id() -> str:
    """Return the id that `bytewax.run` was given, `0` for a flow of one process."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-i", "--process-id", default=os.environ.get("BYTEWAX_PROCESS_ID"))
    given: str | None = parser.parse_known_args()[0].process_id
    pod, group = os.environ.get("BYTEWAX_POD_NAME", ""), os.environ.get("BYTEWAX_STATEFULSET_NAME", "")
    return given or pod.removeprefix(f"{group}-") or "0"


def lineage(data_dir: Path) -> str:
    """Return the name of the recovery store's life: as long as it is the same, positions in it count."""
    return (data_dir / _FOLDER / "lineage").read_text()


def start_over(data_dir: Path, epoch: timedelta) -> NoReturn:
    """Replace this process by the same command with recovery on, in the folder that `prepare` then makes."""
    os.environ[_VARIABLE] = str(data_dir / _FOLDER)
    os.environ.setdefault("BYTEWAX_SNAPSHOT_INTERVAL", str(int(epoch.total_seconds())))
    os.environ.setdefault("BYTEWAX_RECOVERY_BACKUP_INTERVAL", "0")
    # Polls are blocks of megabytes: glibc would give each back to the kernel, and take its pages anew.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(64 << 20))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(256 << 20))
    # A million keys lie all over some hundred megabytes: in large pages finding them takes a fiftieth less time.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
