import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tidegate.settings.addresses.alerts import AlertFile, AlertStdout
from tidegate.settings.addresses.sinks import BillingFile, DeadLetterFile, DeadLetterStdout
from tidegate.settings.addresses.sources import Demo, File
from tidegate.settings.addresses.stores import Sqlite
from tidegate.settings.problems import SettingsError
from tidegate.settings.settings import Settings, load_settings

MIB = 1 << 20

# Every setting: its default, another value as text, as TOML, and as read.
TABLE: list[tuple[str, Any, str, str, Any]] = [
    ("source", Demo(), "file:x?follow=1", '"file:x?follow=1"', File(path="x", follow=True)),
    ("store", Sqlite(path="data/tidegate.db"), "sqlite:x.db", '"sqlite:x.db"', Sqlite(path="x.db")),
    (
        "alerts",
        (AlertStdout(),),
        "file:a?kinds=threshold stdout:",
        '["file:a?kinds=threshold", "stdout:"]',
        (AlertFile(path="a", kinds=("threshold",)), AlertStdout()),
    ),
    ("webhook_secrets", None, "whsec_aa whsec_bb", '"whsec_aa whsec_bb"', SecretStr("whsec_aa whsec_bb")),
    (
        "slack_url",
        None,
        "https://example.com/x",
        '"https://example.com/x"',
        SecretStr("https://example.com/x"),
    ),
    (
        "dead_letters",
        DeadLetterFile(path="data/dead-letters.ndjson"),
        "stdout:",
        '"stdout:"',
        DeadLetterStdout(),
    ),
    ("billing", BillingFile(path="data/billing/"), "file:b/", '"file:b/"', BillingFile(path="b/")),
    ("dodo_api_key", None, "hunter2", '"hunter2"', SecretStr("hunter2")),
    ("branches", ("store", "alerts"), "billing, store,billing", '["billing", "store"]', ("store", "billing")),
    ("catalog", Path("catalog.yaml"), "c.yaml", '"c.yaml"', Path("c.yaml")),
    ("data_dir", Path("data"), "/var/lib/tidegate", '"/var/lib/tidegate"', Path("/var/lib/tidegate")),
    ("recovery", True, "false", "false", False),
    ("recovery_parts", 1, "4", "4", 4),
    ("epoch", timedelta(seconds=10), "30s", '"30s"', timedelta(seconds=30)),
    ("lateness", timedelta(hours=24), "35d", '"P35D"', timedelta(days=35)),
    ("future", timedelta(minutes=5), "0", '"0"', timedelta(0)),
    ("clock", "auto", "event", '"event"', "event"),
    ("shards", 16, "1024", "1024", 1024),
    ("poll_bytes", 16 * MIB, "64KiB", "65536", 65536),
    ("payload_bytes_max", MIB, "2MiB", "2097152", 2 * MIB),
    ("coalesce", timedelta(milliseconds=10), "1s", '"1s"', timedelta(seconds=1)),
    ("store_aside", 20_000, "0", "0", 0),
    ("metrics", None, "0.0.0.0:9464", '"0.0.0.0:9464"', ("0.0.0.0", 9464)),
    ("stall", timedelta(seconds=30), "2m", '"2m"', timedelta(minutes=2)),
    ("peer_timeout", timedelta(minutes=5), "1m", '"1m"', timedelta(minutes=1)),
    ("log", "text", "json", '"json"', "json"),
    ("traces", None, "http://c:4318", '"http://c:4318"', "http://c:4318"),
    ("sync", True, "no", "false", False),
]
NAMES = [row[0] for row in TABLE]


@pytest.fixture(autouse=True)
def source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_SOURCE", "demo:")


def problems(**overrides: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    # Neither a cause nor a context: a traceback would print their values.
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    return list(caught.value.problems)


def test_the_table_has_every_setting() -> None:
    assert {*NAMES, "config"} == set(Settings.model_fields)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(("name", "default", "text", "toml", "value"), TABLE, ids=NAMES)
def test_each_setting_has_its_default_and_is_read_from_every_layer(
    name: str,
    default: object,
    text: str,
    toml: str,
    value: object,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert getattr(load_settings(), name) == default
    assert getattr(load_settings({name: text}), name) == value
    monkeypatch.setenv(f"TIDEGATE_{name.upper()}", text)
    assert getattr(load_settings(), name) == value
    monkeypatch.delenv(f"TIDEGATE_{name.upper()}")
    (folder / ".env").write_text(f"TIDEGATE_{name.upper()}='{text}'\n")
    assert getattr(load_settings(), name) == value
    (folder / ".env").unlink()
    (folder / "tidegate.toml").write_text(f"{name} = {toml}\n")
    assert getattr(load_settings(), name) == value


def test_the_first_that_has_a_setting_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tidegate.toml").write_text('shards = 2\nrecovery_parts = 2\nepoch = "2s"\nlateness = "2h"\n')
    (folder / ".env").write_text(
        "TIDEGATE_RECOVERY_PARTS=3\nexport TIDEGATE_EPOCH=3s\nTIDEGATE_LATENESS=3h\n"
    )
    monkeypatch.setenv("TIDEGATE_EPOCH", "4s")
    monkeypatch.setenv("tidegate_lateness", "4h")
    found = load_settings({"lateness": timedelta(hours=5)})
    assert (found.shards, found.recovery_parts) == (2, 3)
    assert (found.epoch, found.lateness) == (timedelta(seconds=4), timedelta(hours=5))


def test_an_empty_variable_is_not_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files write `X: ${X}`, which is empty where X is not there."""
    monkeypatch.setenv("TIDEGATE_SHARDS", "")
    (folder / "tidegate.toml").write_text("shards = 4")
    assert load_settings().shards == 4


@pytest.mark.parametrize("where", ["environment", ".env", "both", "argument"])
def test_the_toml_file_may_be_named(where: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tidegate.toml").write_text("shards = 2")
    (folder / "other.toml").write_text("shards = 4")
    if where in ("environment", "both"):
        monkeypatch.setenv("TIDEGATE_CONFIG", "other.toml")
    if where == ".env":
        (folder / ".env").write_text("TIDEGATE_CONFIG=other.toml")
    if where == "argument":
        monkeypatch.setenv("TIDEGATE_CONFIG", "tidegate.toml")
    if where == "both":
        (folder / ".env").write_text("TIDEGATE_CONFIG=tidegate.toml")
    found = load_settings({"config": "other.toml"} if where == "argument" else None)
    assert (found.shards, found.config) == (4, Path("other.toml"))


def test_a_toml_file_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_CONFIG", "gone.toml")
    assert problems() == ["TIDEGATE_CONFIG: there is no file 'gone.toml'; name a TOML file or none"]


def test_the_source_is_the_one_setting_that_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDEGATE_SOURCE")
    assert problems() == [
        "TIDEGATE_SOURCE: is missing: Where events come from, such as file:events.ndjson or demo:."
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "source",
            "flie:x",
            ": needs an address that begins with file: or demo: or log: or kafka:; did you mean file?",
        ),
        ("source", "file:x?folow=1", ".FILE.FOLOW: is unknown; did you mean follow?; choices: follow"),
        ("source", "demo:?seed=x", ".DEMO.SEED: needs a whole number"),
        ("store", "sqlite:", ".SQLITE.PATH: is missing: The database file; its folder is made if need be."),
        ("branches", "store,alert", ": needs store, alerts or billing, got 'alert'"),
        ("branches", ",", ": needs at least 1 of them, got ','"),
        ("recovery", "maybe", ": needs true or false, got 'maybe'"),
        ("recovery_parts", "0", ": needs 1 or more, got '0'"),
        ("recovery_parts", "1025", ": needs 1024 or less, got '1025'"),
        ("epoch", "999ms", ": needs 1s to 10m, got '999ms'"),
        ("epoch", "1500ms", ": needs whole seconds, got '1500ms'"),
        ("epoch", "601s", ": needs 1s to 10m, got '601s'"),
        (
            "epoch",
            "10",
            ": needs a duration with its unit, such as 500ms, 10s, 5m, 24h or 35d, got '10'",
        ),
        ("lateness", "36d", ": needs 0 to 35d, got '36d'"),
        ("future", "25h", ": needs 0 to 1d, got '25h'"),
        ("coalesce", "11s", ": needs 0 to 10s, got '11s'"),
        ("store_aside", "-1", ": needs 0 or more, got '-1'"),
        ("clock", "sun", ": needs auto, wall or event, got 'sun'"),
        ("shards", "0", ": needs 1 or more, got '0'"),
        ("shards", "24", ": needs a power of two, got '24'"),
        ("shards", "2048", ": needs 1024 or less, got '2048'"),
        ("poll_bytes", "4095", ": needs 4096 or more, got '4095'"),
        ("poll_bytes", "17MiB", ": needs 16777216 or less, got '17MiB'"),
        ("poll_bytes", "much", ": needs a size in bytes such as 65536, 64KiB or 1MiB, got 'much'"),
        ("payload_bytes_max", "1023", ": needs 1024 or more, got '1023'"),
        ("sync", "x" * 100, ": needs true or false, got '" + "x" * 59 + "…"),
    ],
)
def test_a_wrong_value_is_one_line(
    name: str, text: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TIDEGATE_{name.upper()}", text)
    assert problems() == [f"TIDEGATE_{name.upper()}{message}"]
    monkeypatch.delenv(f"TIDEGATE_{name.upper()}")
    (folder / ".env").write_text(f"TIDEGATE_{name.upper()}='{text}'")
    (line,) = problems()
    setting, _, said = message.partition(":")
    assert line == f"TIDEGATE_{name.upper()}{setting} (.env):{said}"


def test_all_problems_are_told_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_SHARDS", "3")
    (folder / "tidegate.toml").write_text("epoch = 10\nrecovry = true\n")
    assert problems() == [
        "TIDEGATE_EPOCH (TOML): needs a duration with its unit, such as 500ms, 10s, 5m, 24h or 35d, got 10",
        "TIDEGATE_SHARDS: needs a power of two, got '3'",
        "TIDEGATE_RECOVRY (TOML): is unknown; did you mean TIDEGATE_RECOVERY?",
    ]


def test_a_misspelt_name_is_an_error_wherever_it_stands(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is a default in disguise."""
    said = "is unknown; did you mean TIDEGATE_LATENESS?"
    with monkeypatch.context() as patched:
        patched.setenv("TIDEGATE_LATENES", "")
        assert problems() == [f"TIDEGATE_LATENES: {said}"]
    with monkeypatch.context() as patched:
        patched.setenv("tidegate_latenes", "1h")
        assert problems() == [f"TIDEGATE_LATENES: {said}"]
    (folder / ".env").write_text("TIDEGATE_LATENES=1h")
    assert problems() == [f"TIDEGATE_LATENES (.env): {said}"]
    (folder / ".env").unlink()
    (folder / "tidegate.toml").write_text('latenes = "1h"')
    assert problems() == [f"TIDEGATE_LATENES (TOML): {said}"]
    (folder / "tidegate.toml").unlink()
    assert problems(latenes="1h") == [f"TIDEGATE_LATENES: {said}"]


def test_a_name_like_no_other_brings_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_QQQ", "1")
    (line,) = problems()
    assert line.startswith("TIDEGATE_QQQ: is unknown; choices: TIDEGATE_CONFIG, TIDEGATE_SOURCE, ")


def test_others_may_keep_their_variables_beside_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("POSTGRES_PASSWORD=x\nSOURCE=y\nTIDEGATE_SHARDS=2\n")
    monkeypatch.setenv("SHARDS", "x")
    assert load_settings().shards == 2


@pytest.mark.parametrize("line", ["TIDEGATE_SHARDS 4", "export TIDEGATE_SHARDS", "tidegate_shards: 4"])
def test_a_line_that_sets_nothing_is_told(line: str, folder: Path) -> None:
    """python-dotenv passes over it with a log line."""
    (folder / ".env").write_text(f"# ours\n{line}\n")
    (found,) = problems()
    assert re.fullmatch(r"\.env:2: TIDEGATE_SHARDS: needs NAME=value on one line", found, re.IGNORECASE)


def test_files_that_cannot_be_read_are_told(folder: Path) -> None:
    (folder / ".env").write_bytes(b"A=\xff")
    (found,) = problems()
    assert found.startswith(".env: needs UTF-8 text: ")
    (folder / ".env").unlink()
    (folder / "tidegate.toml").write_text("shards = \n")
    (found,) = problems()
    assert found.startswith("tidegate.toml: needs TOML, UTF-8: ") and "line 1" in found
    (folder / "tidegate.toml").write_bytes(b"a = '\xff'")
    (found,) = problems()
    assert found.startswith("tidegate.toml: needs TOML, UTF-8: ")


@pytest.mark.parametrize("layer", ["environment", ".env", "toml", "argument"])
@pytest.mark.parametrize(
    "text",
    ["kafka://me:hunter2@h/t", "file://me:hunter2@h/t", "hunter2", "demo:?seed=hunter2", "demo:?hunter2"],
)
def test_no_line_shows_a_secret(layer: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("source", "store", "alerts", "dead_letters", "billing"):
        if layer == "environment":
            monkeypatch.setenv(f"TIDEGATE_{name.upper()}", text)
        elif layer != "argument":
            monkeypatch.delenv(f"TIDEGATE_{name.upper()}", raising=False)
    names = ("source", "store", "alerts", "dead_letters", "billing")
    if layer == ".env":
        (folder / ".env").write_text("".join(f"TIDEGATE_{name.upper()}={text}\n" for name in names))
    if layer == "toml":
        (folder / "tidegate.toml").write_text("".join(f'{name} = "{text}"\n' for name in names))
    found = problems(**dict.fromkeys(names, text) if layer == "argument" else {})
    assert len(found) == len(names)
    assert "hunter2" not in "\n".join(found)


def test_a_misspelt_name_does_not_show_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_SORCE", "kafka://me:hunter2@h/t")
    assert "hunter2" not in "".join(problems())


@pytest.mark.parametrize(
    ("source", "clock", "now"),
    [
        ("demo:", "auto", "wall"),
        ("file:x", "auto", "event"),
        ("file:x?follow=true", "auto", "event"),
        ("demo:", "event", "event"),
        ("file:x", "wall", "wall"),
    ],
)
def test_now_is_the_wall_clock_for_live_sources(source: str, clock: str, now: str) -> None:
    assert load_settings({"source": source, "clock": clock}).now == now
