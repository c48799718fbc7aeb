"""Versions of the catalog: applied whole or not at all, by whoever comes first, and never by half a file."""

from contextlib import closing
from pathlib import Path

import pytest

from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.operators.model.ports import CatalogConflict
from tidegate.settings.catalog.file import CatalogError
from tidegate.settings.catalog.versions import SETTLED, CatalogFollower, FileWatch, apply_file, apply_text

COUNT = "meters:\n  - {name: calls, event_name: call, aggregation: {type: count}}\n"
SUM = "meters:\n  - {name: calls, event_name: call, aggregation: {type: sum, key: n}}\n"
CAPPED = COUNT + "default_plan: free\nplans:\n  free: {limits: {calls: {cap: 5}}}\n"


@pytest.fixture
def log(tmp_path: Path) -> SqliteControl:
    return SqliteControl(tmp_path / "store.db")


def test_a_file_is_applied_once_and_again_when_it_says_something_else(
    log: SqliteControl, tmp_path: Path
) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(COUNT)
    assert [apply_file(log, path).number for _ in range(3)] == [1, 1, 1]  # type: ignore[union-attr]
    path.write_text(CAPPED)
    assert apply_file(log, path).number == 2  # type: ignore[union-attr]


def test_what_was_changed_since_the_file_stays(log: SqliteControl, tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(COUNT)
    apply_file(log, path)
    apply_text(log, CAPPED, origin="api", by="ops")
    apply_text(log, CAPPED.replace("5", "6"), origin="cli", by="ops")
    found = apply_file(log, path)
    assert found is not None and (found.number, found.origin) == (3, "cli")


def test_without_a_file_the_store_has_the_catalog(log: SqliteControl, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read"):
        apply_file(log, tmp_path / "none.yaml")
    apply_text(log, COUNT, origin="api", by="ops")
    found = apply_file(log, tmp_path / "none.yaml")
    assert found is not None and found.number == 1


def test_a_wrong_catalog_is_no_version(log: SqliteControl) -> None:
    apply_text(log, COUNT, origin="api", by="ops")
    with pytest.raises(CatalogError):
        apply_text(log, "meters: nonsense", origin="api", by="ops")
    with pytest.raises(CatalogError, match="aggregation is fixed"):
        apply_text(log, SUM, origin="api", by="ops")
    with pytest.raises(CatalogConflict):
        apply_text(log, CAPPED, origin="api", by="ops", expected=0)
    assert log.catalog_number() == 1


def test_readers_find_any_version_and_the_newest(log: SqliteControl, tmp_path: Path) -> None:
    apply_text(log, COUNT, origin="api", by="ops")
    with closing(SqliteControl(tmp_path / "store.db")) as other:
        catalogs = CatalogFollower(other)
        assert (catalogs.current.number, catalogs.current.catalog.default_plan) == (1, None)
        apply_text(log, CAPPED, origin="api", by="ops")
        assert (catalogs.current.number, catalogs.follow().number) == (1, 2)
        assert catalogs.current.catalog.default_plan == "free"
        newest = log.catalog()
        assert newest is not None and catalogs.current[2:] == (newest.applied_at, "api")
        assert catalogs.get(1).catalog.default_plan is None


def test_a_file_that_is_still_being_written_is_left_alone(log: SqliteControl, tmp_path: Path) -> None:
    """Its first half may be a valid catalog, one without the caps."""
    path = tmp_path / "catalog.yaml"
    path.write_text(CAPPED)
    apply_file(log, path)
    now = [0.0]
    watch = FileWatch(path, lambda: now[0])
    for text in (COUNT, COUNT + "# more", CAPPED.replace("5", "7")):
        path.write_text(text)
        assert watch.look(log) == ""
        now[0] += SETTLED / 2
        assert watch.look(log) == ""
        assert log.catalog_number() == 1
    now[0] += SETTLED
    assert watch.look(log) == ""
    newest = log.catalog()
    assert newest is not None and newest.text == CAPPED.replace("5", "7")


def test_a_broken_file_is_logged_once_and_the_next_good_one_counts(
    log: SqliteControl, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(COUNT)
    apply_file(log, path)
    now = [0.0]
    watch = FileWatch(path, lambda: now[0])
    path.write_text("meters: [")
    told = []
    for _ in range(5):
        told.append(watch.look(log))
        now[0] += SETTLED
    assert len(set(told)) == 2 and told[0] == "" and told[-1].endswith("did not find expected node content")
    assert caplog.text.count("the catalog stays as it is") == 1
    path.write_text(CAPPED)
    watch.look(log)
    now[0] += SETTLED
    assert watch.look(log) == ""
    assert log.catalog_number() == 2
