"""Settings of the HTTP service, beside the flow's in the same places."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.places import ROOT
from tests.test_docs import written
from tidegate.settings.layers import ELSEWHERE
from tidegate.settings.problems import SettingsError
from tidegate.settings.serving import ServingSettings, load_serving_settings
from tidegate.settings.settings import Settings, load_settings

API = (ROOT / "docs" / "api.md").read_text()
OWN = sorted(set(ServingSettings.model_fields) - set(Settings.model_fields))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", OWN)
def test_every_setting_is_in_the_docs_and_passed_over_by_the_flow(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = ServingSettings.model_fields[name]
    default = "`127.0.0.1:8080`" if name == "listen" else written(field.default or None)
    assert f"| `TIDEGATE_{name.upper()}` | {default} | {field.description} |\n" in API
    assert name in ELSEWHERE
    monkeypatch.setenv(f"TIDEGATE_{name.upper()}", "whatever it is")
    assert load_settings({"source": "demo:"}).source.scheme == "demo"


def test_the_flow_passes_them_over_in_files_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TIDEGATE_LISTEN=127.0.0.1:9\nTIDEGATE_SOURCE=demo:\n")
    (tmp_path / "tidegate.toml").write_text('cors = "https://a.example, https://b.example"\n')
    assert load_settings().source.scheme == "demo"
    serving = load_serving_settings()
    assert serving.listen == ("127.0.0.1", 9)
    assert serving.cors == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"listen": "0.0.0.0:80", "auth": "none"},
            "TIDEGATE_AUTH: needs keys, as TIDEGATE_LISTEN is no loopback",
        ),
        ({"listen": "8080"}, "TIDEGATE_LISTEN: needs HOST:PORT"),
        ({"cors": "*"}, "TIDEGATE_CORS: needs to match"),
        ({"batch_max": "0"}, "TIDEGATE_BATCH_MAX: needs 1 or more"),
        ({"ingest": "log:"}, "TIDEGATE_INGEST.LOG.PATH: is missing"),
    ],
)
def test_what_would_not_be_safe_or_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_serving_settings(given)
    assert caught.value.problems[0].startswith(message)


def test_without_keys_it_may_listen_on_this_machine_alone() -> None:
    for host in ("127.0.0.1:1", "localhost:1", "[::1]:1"):
        assert load_serving_settings({"listen": host, "auth": "none"}).auth == "none"
