"""What a meter's name has counted holds through all versions of the catalog, and through the loss of a store."""

import random
from contextlib import closing
from pathlib import Path

import pytest

from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.operators.model.ports import CatalogVersion
from tidegate.settings.catalog.edit import with_override
from tidegate.settings.catalog.file import CatalogError, parse_catalog, parse_meters
from tidegate.settings.catalog.last_applied import LastApplied
from tidegate.settings.catalog.versions import CatalogFollower, FileWatch, apply_file, apply_text

CALLS = "  - {name: calls, event_name: llm, aggregation: {type: count}}\n"
SUM = "  - {name: tok, event_name: llm, aggregation: {type: sum, key: n}}\n"
MAX = "  - {name: tok, event_name: llm, aggregation: {type: max, key: n}}\n"
OTHER_KEY = "  - {name: tok, event_name: llm, aggregation: {type: sum, key: m}}\n"


def catalog(*meters: str) -> str:
    return f"meters:\n{''.join(meters)}default_plan: free\nplans: {{free: {{limits: {{}}}}}}\n"


@pytest.fixture
def log(tmp_path: Path) -> SqliteControl:
    return SqliteControl(tmp_path / "store.db")


def apply(log: SqliteControl, text: str) -> int:
    return apply_text(log, text, origin="api", by="ops").number


@pytest.mark.parametrize("other", [MAX, OTHER_KEY], ids=["kind", "key"])
def test_a_meter_that_was_taken_out_comes_back_as_it_was(
    log: SqliteControl, tmp_path: Path, other: str
) -> None:
    """Compared with the newest version only, both were applied, and the flow could not start any more."""
    path = tmp_path / "catalog.yaml"
    assert [apply(log, catalog(CALLS, SUM)), apply(log, catalog(CALLS))] == [1, 2]
    with pytest.raises(CatalogError, match=r"meter 'tok': its aggregation is fixed .* as sum of 'n'"):
        apply(log, catalog(CALLS, other))
    path.write_text(catalog(CALLS, other))
    with pytest.raises(CatalogError, match="'tok'"):
        apply_file(log, path)
    now = [0.0]
    watch = FileWatch(path, lambda: now[0])
    path.write_text(catalog(CALLS, other, "  - {name: more, event_name: x, aggregation: {type: count}}\n"))
    watch.look(log)
    now[0] = 1.0
    assert "'tok'" in watch.look(log)
    assert log.catalog_number() == 2
    assert "plans" in with_override(catalog(CALLS), "acme", "calls", {"cap": 1})
    assert apply(log, catalog(CALLS, SUM)) == 3


def test_every_version_that_was_in_force_can_be_put_back(tmp_path: Path) -> None:
    """Whatever catalogs come in whatever order, and by whichever process."""
    rng = random.Random(1)
    kinds = [
        CALLS,
        SUM,
        MAX,
        OTHER_KEY,
        CALLS.replace("count", "unique, key: n"),
        CALLS.replace("llm", "other"),
    ]
    for _ in range(15):
        path = tmp_path / f"{rng.random()}.db"
        accepted: list[str] = []
        for _ in range(8):
            with closing(SqliteControl(path)) as log:
                text = catalog(*{meter[10:14]: meter for meter in rng.sample(kinds, 2)}.values())
                try:
                    apply(log, text)
                except CatalogError:
                    continue
                accepted.append(text)
        with closing(SqliteControl(path)) as log:
            for text in rng.sample(accepted, len(accepted)):
                apply(log, text)
            assert CatalogFollower(log).problem == ""


def test_a_version_of_an_older_program_that_cannot_be_used_is_passed_over(log: SqliteControl) -> None:
    """It took the flow down; the one before it stays in force, and a later good one is taken."""
    apply(log, catalog(CALLS, SUM))
    apply(log, catalog(CALLS))
    for text in (catalog(CALLS, MAX), "meters: of a later version"):
        log.apply(text, origin="api", by="older")
    catalogs = CatalogFollower(log)
    assert catalogs.current[:2] == (2, parse_catalog(catalog(CALLS)))
    assert "catalog version 4" in catalogs.problems
    assert catalogs.follow().number == 2
    apply(log, catalog(CALLS, SUM))
    assert (catalogs.follow().number, catalogs.problems) == (5, "")


def test_a_new_store_is_told_what_the_flow_has_counted(log: SqliteControl, tmp_path: Path) -> None:
    """Else its first catalog would be one that the state can't follow, and the right one refused after it."""
    apply(log, catalog(CALLS, SUM))
    folder = tmp_path / "recovery"
    folder.mkdir()
    CatalogFollower(log, LastApplied(folder / "catalog.json"))
    with closing(SqliteControl(tmp_path / "new.db")) as new:
        apply(new, catalog(CALLS, MAX))
        catalogs = CatalogFollower(new, LastApplied(folder / "catalog.json"))
        assert catalogs.current[:2] == (0, parse_catalog(catalog(CALLS, SUM)))
        assert "'tok'" in catalogs.problems
        with pytest.raises(CatalogError):
            apply(new, catalog(CALLS, MAX))
        assert apply(new, catalog(CALLS, SUM)) == 2
        assert (catalogs.follow().number, catalogs.problems) == (2, "")


def test_what_a_shard_has_counted_stands_above_what_was_noted(log: SqliteControl, tmp_path: Path) -> None:
    """A state of an older version has no note beside it."""
    catalogs = CatalogFollower(log, LastApplied(tmp_path / "catalog.json"))
    catalogs.remember(parse_meters(catalog(SUM)))
    with pytest.raises(CatalogError, match="'tok'"):
        apply(log, catalog(MAX))
    assert LastApplied(tmp_path / "catalog.json").noted.meters == {"tok": ("sum", "n")}


def test_a_note_that_is_damaged_is_made_again(log: SqliteControl, tmp_path: Path) -> None:
    (tmp_path / "catalog.json").write_bytes(b"{")
    apply(log, catalog(SUM))
    CatalogFollower(log, LastApplied(tmp_path / "catalog.json"))
    assert LastApplied(tmp_path / "catalog.json").noted.text == catalog(SUM)


def test_a_long_history_is_read_once(log: SqliteControl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each limit that is set makes a version."""
    for number in range(30):
        log.apply(catalog(CALLS, SUM) + f"# {number}\n", origin="api", by="ops")
    apply(log, catalog(CALLS))
    read: list[int | None] = []
    kept = SqliteControl.catalog

    def noting(self: SqliteControl, number: int | None = None) -> CatalogVersion | None:
        read.append(number)
        return kept(self, number)

    monkeypatch.setattr(SqliteControl, "catalog", noting)
    apply(log, catalog(CALLS, SUM))
    assert read == [31]
    with pytest.raises(CatalogError):
        apply(log, catalog(MAX))


@pytest.mark.parametrize("behind", ["", "plans: {p: {}}\n", "plans: [\n", "customers: {a: *b}\n"])
def test_meters_alone_are_read_as_in_the_whole(behind: str) -> None:
    text = f"default_plan: p\nmeters:\n{CALLS}  - {{name: bad}}\n{SUM}{behind}"
    assert (
        parse_meters(text)
        == parse_meters(f"meters:\n{CALLS}{SUM}")
        == parse_catalog(catalog(CALLS, SUM)).meters
    )
    assert parse_meters("") == parse_meters("meters: x") == parse_meters("[]") == ()
