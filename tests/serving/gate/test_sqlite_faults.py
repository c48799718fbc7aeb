"""The gate on a real file: locked, deleted, replaced, corrupt, slow; each time flagged, and well again by itself."""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.serving.gate.fakes import Face, catalog_text
from tests.support.heartbeats import ENDED
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.holds import SqliteHolds
from tidegate.connectors.sqlite.store import SqliteWriter
from tidegate.connectors.sqlite.store_schema import PACKED
from tidegate.operators.model.periods import Calendar, find_period
from tidegate.operators.model.records import Total
from tidegate.serving.gate import AsyncGate, Gate

PATIENCE = 30
WRITE = timedelta(milliseconds=100)


def write(path: Path, used: int, version: int) -> None:
    """Usage of acme in the month that it is."""
    start, end = find_period(Calendar("month"), "UTC", time.time_ns() // 1000)
    total = Total("acme", "period", "calls", start, end, used, version, version, start, 0, 0, 0, True)
    with closing(SqliteWriter(path)) as writer:
        writer.write([total], [], heartbeats=[ENDED])


def store_at(path: Path, used: int = 5, calls: str = "{cap: 10, fail: closed}") -> None:
    write(path, used, 1)
    with closing(SqliteControl(path)) as control:
        control.apply(catalog_text(calls), origin="cli", by="me")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    store_at(path)
    return path


@pytest.fixture(params=[(Gate, True), (Gate, False), (AsyncGate, True)], ids=["near", "far", "async"])
def gate(request: pytest.FixtureRequest, path: Path) -> Iterator[Face]:
    kind, near = request.param
    store = SqliteHolds(path, read_wait=timedelta(milliseconds=50), write_wait=WRITE)
    # Longer than a busy machine needs, as it is not the time-out that is looked at here.
    gate = Face(kind, store, near=near, timeout=timedelta(seconds=5), write_timeout=timedelta(seconds=5))
    soon(lambda: gate.check("acme", "calls").allowed)
    if near:
        soon(lambda: gate.check("acme", "calls") and "near" in gate.gate.counters())
    yield gate
    gate.close()


def soon(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_closed(gate: Face) -> bool:
    """Degraded, and denied as the cap says."""
    decision = gate.check("acme", "calls")
    assert decision.allowed != decision.degraded
    return decision.degraded


def is_well(gate: Face) -> bool:
    decision = gate.check("acme", "calls")
    reserved = gate.reserve("acme", "calls", 1, id="well")
    gate.release("acme", "well")
    return decision.allowed and reserved.allowed and not decision.degraded and not reserved.degraded


def test_while_another_holds_the_write_lock_only_writing_waits(gate: Face, path: Path) -> None:
    """The flow in the middle of a long write, or somebody's sqlite3 shell."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for n in range(5):
            assert not gate.check("acme", "calls").degraded
            assert not gate.check("acme", "calls", 6).allowed
            reserved = gate.reserve("acme", "calls", 1, id=str(n))
            assert (reserved.allowed, reserved.degraded) == (False, True)
            # Who gets nothing anyway, waits for no lock.
            if n == 0:
                denied = gate.reserve("acme", "calls", 6, id="more")
                assert (denied.allowed, denied.degraded, denied.reason) == (False, False, "cap_reached")
        assert "lock" in reserved.detail or "moment" in reserved.detail
        other.execute("ROLLBACK")
    soon(lambda: is_well(gate))


def test_a_store_that_is_locked_for_all(path: Path) -> None:
    with closing(
        Gate(SqliteHolds(path, read_wait=timedelta(0)), near=False, timeout=timedelta(seconds=5))
    ) as gate:
        assert gate.check("acme", "calls").allowed
        gate._core.store.close()
        other = sqlite3.connect(path, isolation_level=None)
        with closing(other):
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            decision = gate.check("acme", "calls")
            assert (decision.allowed, decision.degraded) == (False, True)
            other.execute("ROLLBACK")
        soon(lambda: gate.check("acme", "calls").allowed)


def test_a_store_that_is_deleted_and_comes_back(gate: Face, path: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    files = [path.with_name(path.name + end) for end in ("", "-wal", "-shm")]
    for file in files:
        if file.exists():
            os.rename(file, away / file.name)
    soon(lambda: is_closed(gate))
    assert not path.exists(), "an empty store in its place would forget all usage"
    for file in away.iterdir():
        os.rename(file, path.with_name(file.name))
    soon(lambda: is_well(gate))


def test_a_store_that_is_replaced_by_another(gate: Face, path: Path, tmp_path: Path) -> None:
    """A backup that was put back: what it says counts, and nothing that was remembered."""
    other = tmp_path / "other.db"
    # Its catalog has the same number, and says something else.
    store_at(other, used=10, calls="{cap: 7}")
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    os.replace(other, path)
    soon(lambda: (d := gate.check("acme", "calls")) and not d.allowed and not d.degraded and d.used == 10)
    write(path, 11, 2)
    soon(lambda: gate.check("acme", "calls").used == 11)
    if gate.gate._core.terms.near:
        soon(lambda: gate.check("acme", "calls").limit == 7)


def test_a_store_that_is_damaged_and_restored(gate: Face, path: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(backup)) as copy:
        db.backup(copy)
        copy.execute("PRAGMA journal_mode = WAL")
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"SQLite format 3\0" + os.urandom(64 * 1024))
    _put(broken, path)
    soon(lambda: is_closed(gate))
    _put(backup, path)
    soon(lambda: is_well(gate))


def test_a_total_of_the_wrong_type_is_not_taken_for_one(path: Path) -> None:
    with closing(Gate(SqliteHolds(path), near=False, timeout=timedelta(seconds=5))) as gate:
        assert gate.check("acme", "calls").allowed
        for wrong in ('"nonsense"', '"NaN"', "1.5", "null", '"1e999999999"', "[]", '"5"]]', "true"):
            with closing(sqlite3.connect(path)) as db, db:
                for table in PACKED:
                    db.execute(f"UPDATE {table} SET body = ?", (f'[["calls", 0, {wrong}, 1, 5]]',))
            decision = gate.check("acme", "calls")
            assert (decision.allowed, decision.degraded) == (False, True)
            gate._core._reading.breaker.succeeded()


@pytest.mark.parametrize("kind", [Gate, AsyncGate])
def test_a_store_that_is_not_there_yet(tmp_path: Path, kind: Any) -> None:
    """The gate may start first; it does not make a store of its own."""
    path = tmp_path / "new" / "store.db"
    gate = Face(kind, SqliteHolds(path), fail="closed", timeout=timedelta(seconds=5))
    try:
        assert is_closed(gate) and not path.exists()
        path.parent.mkdir()
        store_at(path)
        soon(lambda: is_well(gate))
    finally:
        gate.close()


def _put(source: Path, path: Path) -> None:
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    new = path.with_name("new")
    shutil.copy(source, new)
    os.replace(new, path)
