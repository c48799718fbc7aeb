"""Every SQLite file of ours across releases: made, migrated, refused, killed half-way, and explained in one line.

`before_versions/` has a file of each kind as the last release without versions wrote it, `…-first.sql` as the first
release that had it did. A schema that is changed keeps them, and with them the tests that its users' files still open.
"""

import ast
import importlib
import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from tests.connectors.contracts.store import child, processes
from tests.support.places import ROOT
from tidegate.connectors.alerts.queue import Queue
from tidegate.connectors.dodo.webhook_inbox import Inbox
from tidegate.connectors.outbox.ledger import LedgerReader
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.reconciliation.book_reader import BookReader
from tidegate.connectors.reconciliation.statement_store import read_statement
from tidegate.connectors.sqlite.api_keys import KeyFile
from tidegate.connectors.sqlite.connection import Mode, connect
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.files import open_file
from tidegate.connectors.sqlite.schema import Schema
from tidegate.connectors.sqlite.store import SqliteReader, make_store
from tidegate.operators.model.errors import TidegateError
from tidegate.operators.model.ports import StoreError, StoreReplaced

PRODUCT: Final = ("connectors", "flows", "operators", "serving", "settings")
BEFORE: Final = {path.stem: path for path in (Path(__file__).parent / "before_versions").glob("*.sql")}
NOW: Final = 1_780_000_000_000_000


def sources() -> Iterator[Path]:
    return (path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py"))


def all_schemas() -> dict[str, Schema]:
    """The schemas of the product by their names."""
    modules = (
        importlib.import_module(".".join(("tidegate", *path.relative_to(ROOT).with_suffix("").parts)))
        for path in sources()
        if "Schema(" in path.read_text()
    )
    return {
        value.name: value for module in modules for value in vars(module).values() if type(value) is Schema
    }


SCHEMAS: Final = all_schemas()
every_schema: Final = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
every_file_before: Final = pytest.mark.parametrize("before", sorted(BEFORE))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.db"


def schema_of(before: str) -> Schema:
    return SCHEMAS[before.removesuffix("-first")]


def put_before(before: str, path: Path) -> None:
    """Have the file of a release before versions at `path`."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(BEFORE[before].read_text())


def layout(path: Path) -> set[tuple[str, ...]]:
    """What is in the file, however its statements are spaced."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema").fetchall()
    # A table of SQLite's own, made with the first row that counts itself.
    return {(*row[:3], " ".join(row[3].split())) for row in rows if row[1] != "sqlite_sequence"}


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


def new_layout(schema: Schema, folder: Path) -> set[tuple[str, ...]]:
    path = folder / "new.db"
    open_file(path, schema, "rwc").close()
    return layout(path)


def refusal(schema: Schema, path: Path, mode: Mode, **given: Any) -> str:
    """The one line that says why the file does not open."""
    with pytest.raises(schema.error) as caught:
        open_file(path, schema, mode, **given)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{schema.name} {str(path)!r}: ")
    return line


# Versions


def test_the_schemas_are_found() -> None:
    """What is not found here is not tested below."""
    assert {one.removesuffix("-first") for one in BEFORE} <= SCHEMAS.keys() and len(SCHEMAS) >= 8


@every_schema
def test_a_file_migrated_from_any_version_is_as_one_that_is_new(schema: Schema, tmp_path: Path) -> None:
    for version in range(schema.version):
        path = tmp_path / f"{version}.db"
        path.touch()
        if version:
            open_file(path, replace(schema, migrations=schema.migrations[:version]), "rwc").close()
        open_file(path, schema, "rwc").close()
        assert layout(path) == new_layout(schema, tmp_path) and version_of(path) == schema.version


@every_file_before
def test_a_file_from_before_versions_keeps_what_is_in_it(before: str, path: Path, tmp_path: Path) -> None:
    schema = schema_of(before)
    put_before(before, path)
    rows = contents(path)
    open_file(path, schema, "rwc").close()
    assert layout(path) == new_layout(schema, tmp_path) and version_of(path) == schema.version
    after = contents(path)
    assert {table: after[table] for table in rows} == rows


def test_a_store_from_before_heartbeats_gets_their_table(path: Path, tmp_path: Path) -> None:
    put_before("store", path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE heartbeats")
    with closing(SqliteReader(path)) as reader:
        assert reader.heartbeats() == []
    open_file(path, SCHEMAS["store"], "rwc").close()
    assert layout(path) == new_layout(SCHEMAS["store"], tmp_path)


@pytest.mark.parametrize("before", sorted(SCHEMAS.keys() & BEFORE.keys()))
def test_a_reader_opens_a_file_from_before_versions_and_leaves_it(before: str, path: Path) -> None:
    """Commands of this release look at files of a flow that was not started again yet."""
    put_before(before, path)
    held = path.read_bytes()
    modes: tuple[Mode, ...] = ("ro", "rw")
    for mode in modes:
        open_file(path, schema_of(before), mode).close()
    assert path.read_bytes() == held


@pytest.mark.parametrize("upgraded", [False, True])
def test_the_product_reads_what_it_wrote_before_versions(tmp_path: Path, upgraded: bool) -> None:
    names = {name: f"{name}.db" for name in SCHEMAS}
    for name, file in names.items():
        put_before(name, tmp_path / file)
        if upgraded:
            open_file(tmp_path / file, SCHEMAS[name], "rwc").close()
    with closing(SqliteReader(tmp_path / "store.db")) as store:
        assert [(one.total.customer, one.total.total) for one in store.totals()] == [("acme", 5)]
        assert len(store.heartbeats()) == 1
    with closing(OutboxReader(tmp_path / "outbox.db")) as outbox:
        assert (outbox.read_statistics().waiting, outbox.read_statistics().alerts) == (1, {"late": "text"})
    with closing(LedgerReader(tmp_path / "ledger.db")) as ledger:
        assert ledger.since() == NOW and [one.id for one in ledger.events("acme", NOW, NOW + 1)] == ["e1"]
    with closing(BookReader(tmp_path)) as book:
        assert [one.customer for one in book.open()] == ["acme"] and book.proof() == [{}]
    assert [line.customer for line in read_statement(tmp_path)] == ["acme"]
    with closing(KeyFile(tmp_path / "keys.db")) as keys:
        assert [key.name for key in keys.list()] == ["one"]
    with closing(Queue(tmp_path / "deliveries.db")) as queue:
        assert [message.id for message in queue.due("webhook:x", 10)] == ["a1"]
    with closing(Inbox(tmp_path / "webhooks.db")) as inbox:
        assert inbox.take("w1", NOW // 1_000_000, None) is False


@every_schema
@pytest.mark.parametrize("mode", ["ro", "rw", "rwc"])
def test_a_newer_version_is_refused_and_left_as_it_is(schema: Schema, mode: Mode, path: Path) -> None:
    open_file(path, schema, "rwc").close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {schema.version + 1}")
    held = path.read_bytes()
    line = refusal(schema, path, mode)
    assert f"needs version {schema.version} at most, got {schema.version + 1}, of a newer release" in line
    assert path.read_bytes() == held


@every_schema
@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_who_may_not_migrate_says_who_does(schema: Schema, mode: Mode, path: Path) -> None:
    open_file(path, schema, "rwc").close()
    next_one = replace(schema, migrations=(*schema.migrations, "CREATE TABLE more (x)"))
    assert f"of an earlier release; {schema.maker}, which migrates it" in refusal(next_one, path, mode)
    open_file(path, next_one, "rwc").close()
    open_file(path, next_one, mode).close()


# Two at once, kills and failures in the middle


def _open_all(folder: Path, start: Any) -> None:
    try:
        for before in sorted(BEFORE):
            start.wait()
            open_file(folder / f"{before}.db", schema_of(before), "rwc").close()
            start.wait()
            open_file(folder / f"{before}-new.db", schema_of(before), "rwc").close()
    except BaseException:
        # Else the other would wait for this one.
        start.abort()
        raise


def test_of_two_processes_at_once_one_makes_and_migrates(tmp_path: Path) -> None:
    for before in BEFORE:
        put_before(before, tmp_path / f"{before}.db")
    start = processes.Barrier(2)
    with child(_open_all, tmp_path, start) as one, child(_open_all, tmp_path, start) as other:
        one.join()
        other.join()
        assert (one.exitcode, other.exitcode) == (0, 0)
    for before in BEFORE:
        expected = new_layout(schema_of(before), tmp_path)
        for name in (before, f"{before}-new"):
            assert layout(tmp_path / f"{name}.db") == expected
        (tmp_path / "new.db").unlink()
    assert not list(tmp_path.glob("*.new"))


def _add_a_row(db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO log VALUES ('migrated')")


TOY: Final = Schema(
    name="toy",
    error=TidegateError,
    mark="SELECT 1 FROM sqlite_schema WHERE name = 'log'",
    migrations=("CREATE TABLE IF NOT EXISTS log (text);",),
    maker="start the toy",
    if_damaged="throw it away",
)
TRIGGERED: Final = """
CREATE TABLE other (text);
CREATE TRIGGER copied AFTER INSERT ON log BEGIN
    INSERT INTO other VALUES (new.text || ';'); INSERT INTO other VALUES ('again');
END;
"""


def _migrate_toy(path: Path, start: Any) -> None:
    start.wait()
    open_file(path, replace(TOY, migrations=(*TOY.migrations, _add_a_row)), "rwc").close()


def test_a_migration_happens_once(path: Path) -> None:
    open_file(path, TOY, "rwc").close()
    start = processes.Barrier(3)
    with (
        child(_migrate_toy, path, start) as one,
        child(_migrate_toy, path, start) as two,
        child(_migrate_toy, path, start) as three,
    ):
        for process in (one, two, three):
            process.join()
            assert process.exitcode == 0
    assert contents(path)["log"] == [("migrated",)]


def test_a_migration_may_be_a_script_or_a_function(path: Path) -> None:
    open_file(path, replace(TOY, migrations=(*TOY.migrations, TRIGGERED, _add_a_row)), "rwc").close()
    assert contents(path) == {"log": [("migrated",)], "other": [("migrated;",), ("again",)]}


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    open_file(path, TOY, "rwc").close()
    failing = replace(TOY, migrations=(*TOY.migrations, TRIGGERED, "SELECT x FROM nowhere;"))
    assert "no such table: nowhere" in refusal(failing, path, "rwc")
    assert version_of(path) == 1 and contents(path) == {"log": []}


def _open_and_die_at(statement: int, path: Path, schema: Schema) -> None:
    left = count(1)

    class Killed(sqlite3.Connection):
        def execute(self, *given: Any) -> sqlite3.Cursor:
            if next(left) == statement:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().execute(*given)

    sqlite3.connect = partial(sqlite3.connect, factory=Killed)  # type: ignore[assignment]
    open_file(path, schema, "rwc").close()


def _kill_at_each_statement(folder: Path, before: str | None, schema_name: str) -> None:
    """Fork once for each statement, with a file of its own, until one is through."""
    for statement in count(1):
        path = folder / f"{statement}.db"
        if before is not None:
            put_before(before, path)
        pid = os.fork()
        if not pid:
            try:
                _open_and_die_at(statement, path, SCHEMAS[schema_name])
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(2)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != -signal.SIGKILL:
            sys.exit(code)


@pytest.mark.parametrize("before", [*sorted(BEFORE), *(f"new {name}" for name in SCHEMAS)])
def test_killed_at_any_statement_a_file_is_as_before_or_after(before: str, tmp_path: Path) -> None:
    """Each statement of making and migrating is tried, with the pragmas around it."""
    is_new = before.startswith("new ")
    schema = SCHEMAS[before.removeprefix("new ")] if is_new else schema_of(before)
    killed = tmp_path / "killed"
    killed.mkdir()
    with child(_kill_at_each_statement, killed, None if is_new else before, schema.name) as process:
        process.join()
        assert process.exitcode == 0
    after = new_layout(schema, tmp_path)
    earlier: set[tuple[str, ...]] = set()
    if not is_new:
        put_before(before, tmp_path / "before.db")
        earlier = layout(tmp_path / "before.db")
    numbers = sorted(int(path.stem) for path in killed.glob("*.db"))
    found = []
    for number in numbers:
        path = killed / f"{number}.db"
        found.append((version_of(path), layout(path)))
        open_file(path, schema, "rwc").close()
        assert layout(path) == after
    assert all(one in ((0, earlier), (schema.version, after)) for one in found)
    if not is_new:
        # Both ends of the migration were seen, so what lies between them was.
        assert found[0] == (0, earlier) and found[-1] == (schema.version, after) and len(found) > 6


# What is wrong with a file is one line


def _garbage(path: Path) -> None:
    path.write_bytes(b"customer,total\n" * 1000)


def _another_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE meta (key, value); CREATE TABLE theirs (x); PRAGMA user_version = 1")


@every_schema
@pytest.mark.parametrize(
    ("make", "mode", "says"),
    [
        (_garbage, "rwc", "this is no SQLite file; name another path"),
        (_garbage, "ro", "this is no SQLite file; name another path"),
        (_another_database, "rwc", "got another database; name another path"),
        (_another_database, "ro", "got another database; name another path"),
        (Path.mkdir, "rwc", "needs a file, got something else; name another path"),
        (Path.mkdir, "ro", "needs a file, got something else; name another path"),
        (Path.touch, "ro", "the file is empty; {maker}, which fills it"),
        (lambda path: None, "ro", "there is no such file; {maker}, which creates it"),
        (lambda path: None, "rw", "there is no such file; {maker}, which creates it"),
    ],
)
def test_what_is_no_file_of_ours_is_named_and_left(
    schema: Schema, make: Callable[[Path], object], mode: Mode, says: str, path: Path
) -> None:
    make(path)
    held = path.read_bytes() if path.is_file() else None
    assert says.format(maker=schema.maker) in refusal(schema, path, mode)
    assert path not in [Path(os.readlink(fd)) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert held == (path.read_bytes() if path.is_file() else None)


@every_schema
def test_a_damaged_file_says_what_to_do_with_it(schema: Schema, path: Path) -> None:
    put_before(schema.name, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    assert f"the file is damaged; {schema.if_damaged}" in refusal(schema, path, "rwc")


@every_schema
def test_a_full_disk_is_one_line_and_the_file_fills_later(schema: Schema, path: Path, tmp_path: Path) -> None:
    path.touch()
    assert "the disk is full; free space" in refusal(schema, path, "rwc", pragmas={"max_page_count": 1})
    open_file(path, schema, "rwc").close()
    assert layout(path) == new_layout(schema, tmp_path)


@every_schema
def test_a_file_that_may_not_be_written_is_one_line(schema: Schema, path: Path) -> None:
    put_before(schema.name, path)
    assert "read-only for this user" in refusal(schema, path, "rwc", pragmas={"query_only": 1})


@every_schema
def test_a_folder_that_cannot_be_made_is_one_line(schema: Schema, path: Path) -> None:
    path.touch()
    assert "it needs a folder on a local disk" in refusal(schema, path / "file.db", "rwc")


@every_schema
@pytest.mark.parametrize("act", ["reading", "transaction", "snapshot"])
def test_a_statement_that_fails_is_one_line_and_leaves_nothing(schema: Schema, act: str, path: Path) -> None:
    with closing(open_file(path, schema, "rwc")) as file:
        with pytest.raises(schema.error, match="no such table: nowhere"), getattr(file, act)() as db:
            db.execute("SELECT * FROM nowhere")
        assert not file.db.in_transaction
        with pytest.raises(ZeroDivisionError), file.transaction() as db:
            db.execute("CREATE TABLE half (x)")
            raise ZeroDivisionError
        assert not file.rows("SELECT 1 FROM sqlite_schema WHERE name = 'half'")


@every_schema
def test_a_lock_of_another_is_waited_for_and_named(schema: Schema, path: Path) -> None:
    put_before(schema.name, path)
    with closing(connect(path, "rw")) as other:
        other.execute("BEGIN EXCLUSIVE")
        modes: tuple[Mode, ...] = ("ro", "rwc")
        for mode in modes:
            line = refusal(schema, path, mode, wait=timedelta(0))
            assert "another process kept the write lock" in line


def test_only_a_store_is_watched_for_being_replaced(path: Path) -> None:
    """A gate must not go on with totals of a file that is gone; others have one process and its lock."""
    for schema in SCHEMAS.values():
        with closing(open_file(path, schema, "rwc")) as file:
            for left in path.parent.iterdir():
                left.unlink()
            if schema.replaced is None:
                file.rows("SELECT 1")
            else:
                with pytest.raises(StoreReplaced, match="moved, replaced or deleted while open"):
                    file.rows("SELECT 1")


@every_schema
def test_a_file_is_its_owners_alone(schema: Schema, path: Path) -> None:
    with closing(open_file(path, schema, "rwc")) as file, file.transaction() as db:
        db.execute("PRAGMA user_version")
        assert {one.stat().st_mode & 0o777 for one in path.parent.iterdir()} == {0o600}


# Nobody opens a file another way


def test_every_file_is_opened_by_the_one_module() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        if path.name != "connection.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) == "sqlite3.connect")
        or (isinstance(node, ast.ImportFrom) and node.module == "sqlite3")
    ]
    assert not wrong


def test_transactions_and_versions_are_the_one_modules_too() -> None:
    ours = {ROOT / "connectors/sqlite" / name for name in ("connection.py", "schema.py", "files.py")}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value[:40]}"
        for path in sources()
        if path not in ours
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith(
            ("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA user_version", "PRAGMA journal_mode")
        )
    ]
    assert not wrong


@pytest.mark.parametrize("end", ["-wal", "-journal"])
def test_a_log_without_its_file_is_never_written_into_a_new_one(tmp_path: Path, end: str) -> None:
    """The file was moved away while it was open, or deleted without its log, and something starts meanwhile."""
    path = tmp_path / "tidegate.db"
    make_store(path)
    log = path.with_name(path.name + end)
    log.write_bytes(b"of the old file")
    away = path.rename(tmp_path / "away.db")
    with pytest.raises(StoreError, match=f"tidegate.db{end}' is there; put the file back"):
        make_store(path)
    assert not path.exists() and log.read_bytes() == b"of the old file"
    log.unlink()
    away.rename(path)
    make_store(path)


def test_a_file_that_is_moved_away_while_it_is_written_comes_back_whole_after_a_start(tmp_path: Path) -> None:
    path = tmp_path / "tidegate.db"
    with closing(SqliteControl(path)) as control:
        control.apply("meters: [{name: a, event_name: b, aggregation: {type: count}}]", origin="cli", by="me")
        away = path.rename(tmp_path / "away.db")
        with pytest.raises(StoreError, match="put the file back"):
            make_store(path)
        away.rename(path)
    with closing(SqliteControl(path)) as control:
        assert control.catalog_number() == 1
