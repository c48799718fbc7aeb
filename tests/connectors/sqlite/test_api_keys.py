"""API keys in their file, as processes share it."""

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.places import ROOT
from tidegate.connectors.sqlite import api_keys
from tidegate.connectors.sqlite.api_keys import LOOK, KeyFile, KeysError
from tidegate.operators.gate.access import Scope

MINUTE, HOUR = 60_000_000, 3_600_000_000

CREATE = """
import sys
from contextlib import closing
from tidegate.connectors.sqlite.api_keys import KeyFile
with closing(KeyFile(sys.argv[1])) as keys:
    print(keys.create("one", frozenset({"read"}))[0])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
def keys(path: Path) -> Iterator[KeyFile]:
    keys = KeyFile(path)
    yield keys
    keys.close()


def create(path: Path) -> str:
    """The token of a key that another process makes."""
    made = subprocess.run(
        [sys.executable, "-c", CREATE, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.strip()


def test_keys_that_others_make_are_known_even_after_a_second_look_at_the_file(
    path: Path, keys: KeyFile
) -> None:
    """As `tidegate serve` does, which counts the keys once it listens: the first connection must keep its locks."""
    KeyFile(path).close()
    for turn in range(3):
        assert keys.find(create(path), turn * 2 * LOOK) is not None, turn


def fill(path: Path, count: int, expires_at: int | None) -> None:
    rows = ((f"{n:012x}", "page", "read", "c", b"x" * 32, 1, expires_at, None) for n in range(count))
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


READ: frozenset[Scope] = frozenset({"read"})


def test_keys_that_have_ended_make_room_and_those_that_are_good_do_not(
    path: Path, keys: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "KEYS_MAX", 50)
    fill(path, 50, expires_at=2)
    token, _ = keys.create("new", READ)
    assert keys.find(token, 0) is not None and len(keys.list()) == 1
    for _ in range(49):
        keys.create("good", READ)
    with pytest.raises(KeysError, match="tidegate keys revoke"):
        keys.create("one too many", READ)
    assert len(keys.list()) == 50


def test_prune_deletes_what_ended_long_enough_ago_and_nothing_else(path: Path) -> None:
    now = [10 * HOUR]
    with closing(KeyFile(path, clock=lambda: now[0])) as keys:
        fill(path, 2500, expires_at=9 * HOUR)
        good = keys.create("good", READ)[1]
        fresh = keys.create("fresh", READ, expires_in=timedelta(hours=2))[1]
        revoked = keys.create("revoked", READ)[1]
        keys.revoke(revoked.id)
        assert keys.prune(timedelta(hours=1)) == 2500
        assert keys.prune(timedelta(0)) == 1
        now[0] += 3 * HOUR
        assert keys.prune(timedelta(hours=2)) == 0
        assert {key.id for key in keys.list()} == {good.id, fresh.id}


def test_a_change_of_many_keys_costs_those_that_are_used_one_row_each(path: Path, keys: KeyFile) -> None:
    """A hundred thousand keys were read again for each that was made, while every check waited."""
    token, _ = keys.create("used", READ)
    fill(path, 20_000, expires_at=None)
    statements: list[str] = []
    keys._reader.db.set_trace_callback(statements.append)
    for turn in range(3):
        keys.create("another", READ)
        assert keys.find(token, turn * 2 * LOOK) is not None
    assert len(statements) == 6
    assert all("WHERE id = " in one or "data_version" in one for one in statements)


def test_what_is_known_is_found_while_another_holds_the_file(path: Path, keys: KeyFile) -> None:
    token, _ = keys.create("used", READ)
    assert keys.find(token, 0) is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert keys.find(token, 2 * LOOK) is not None


def test_a_rotated_key_opens_until_the_overlap_ends_and_the_new_one_goes_on(path: Path) -> None:
    now = [HOUR]
    with closing(KeyFile(path, clock=lambda: now[0])) as keys:
        old, key = keys.create("server", frozenset({"ingest", "check"}), expires_in=timedelta(hours=8))
        new, made = keys.rotate(key.id, timedelta(hours=1))
        assert (made.name, made.scopes, made.expires_at) == (key.name, key.scopes, 9 * HOUR)
        assert keys.find(old, 0) and keys.find(new, 0)
        now[0] += HOUR
        assert keys.find(old, 1) is None and keys.find(new, 1)
        with pytest.raises(KeysError, match="create another"):
            keys.rotate(key.id, timedelta(0))


def test_a_token_is_its_customers_for_its_time_and_ends_with_the_key_that_issued_it(path: Path) -> None:
    now = [HOUR]
    with closing(KeyFile(path, clock=lambda: now[0])) as keys, closing(KeyFile(path)) as elsewhere:
        keys.open_signing()
        _, issuer = keys.create("server", READ)
        token, _ = keys.issue(issuer, "acme", timedelta(minutes=5))
        found = keys.find(token, 0)
        assert found is not None and (found.customer, found.scopes) == ("acme", READ)
        assert keys.is_good(found, 0)
        assert elsewhere._find_token(token) is None, "by another clock it has expired"
        for broken in (
            token[:-1],
            token[:-1] + ("A" if token[-1] != "A" else "B"),
            token[:8] + "x" + token[9:],
        ):
            assert keys.find(broken, 0) is None
        now[0] += 5 * MINUTE
        assert keys.find(token, 1) is None and not keys.is_good(found, 1)
        token, _ = keys.issue(issuer, "acme", timedelta(minutes=5))
        found = keys.find(token, 2)
        assert found is not None
        keys.revoke(issuer.id)
        assert keys.find(token, 3) is None and not keys.is_good(found, 3)


def test_tokens_of_an_earlier_signing_secret_are_good_for_the_overlap(path: Path) -> None:
    now = [HOUR]
    with closing(KeyFile(path, clock=lambda: now[0])) as keys:
        keys.open_signing()
        _, issuer = keys.create("server", READ)
        earlier, _ = keys.issue(issuer, "acme", timedelta(hours=1))
        keys.rotate_signing(timedelta(minutes=10))
        later, _ = keys.issue(issuer, "acme", timedelta(hours=1))
        assert keys.find(earlier, 0) and keys.find(later, 0)
        now[0] += 10 * MINUTE
        assert keys.find(earlier, 1) is None and keys.find(later, 1)
        keys.rotate_signing(timedelta(0))
        assert keys.find(later, 2) is None


def test_the_file_is_its_owners_alone(path: Path, keys: KeyFile) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_needs_no_memory_that_only_one_machine_has(path: Path, keys: KeyFile) -> None:
    """Services on several machines share it: no write-ahead log, whose index is shared memory."""
    keys.create("one", READ)
    assert not list(path.parent.glob("*-shm")) and not list(path.parent.glob("*-wal"))


def test_a_file_of_an_earlier_version_loses_its_write_ahead_log(path: Path) -> None:
    KeyFile(path).close()
    with closing(sqlite3.connect(path)) as earlier:
        earlier.execute("PRAGMA journal_mode = WAL")
        earlier.execute("PRAGMA user_version").fetchone()
        with closing(KeyFile(path)) as keys:
            token, _ = keys.create("while it is open elsewhere", READ)
    with closing(KeyFile(path)) as keys:
        assert keys._file.db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert keys.find(token, 0) is not None


def test_what_is_known_is_found_while_a_key_is_written_and_for_two_seconds(path: Path, keys: KeyFile) -> None:
    token, _ = keys.create("used", READ)
    assert keys.find(token, 0) is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert keys.find(token, 1) is not None
        with pytest.raises(KeysError, match="locked"):
            keys.find(token, 3)
    assert keys.find(token, 4) is not None


CUT_SHORT = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
for n in range(20000):
    db.execute("INSERT INTO keys (id, name) VALUES (?, ?)", (f"half {n}", "x" * 100))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_write_that_a_kill_cut_short_is_taken_back(path: Path, keys: KeyFile) -> None:
    token, _ = keys.create("used", READ)
    subprocess.run([sys.executable, "-c", CUT_SHORT, str(path)], cwd=path.parent)
    assert path.with_name("keys.db-journal").exists()
    assert keys.find(token, 0) is not None
    assert len(keys.list()) == 1
