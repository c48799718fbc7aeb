"""A library that is not installed is named with the extra that has it."""

import sys
import tomllib

import pytest

from settings import extras
from settings.address import load
from settings.problems import SettingsError
from tests.faults.harness import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("connectors.kafka", "confluent_kafka", "kafka"),
        ("connectors.redis_store", "redis", "redis"),
        ("connectors.alert_webhook", "httpx", "webhook"),
        ("connectors.alert_slack", "httpx", "slack"),
        ("connectors.alert_mail", "jinja2", "smtp"),
    ],
)
def test_a_connector_names_its_extra(
    module: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name == module or name.partition(".")[0] == library or name.startswith("connectors.kafka"):
            monkeypatch.delitem(sys.modules, name)
    for name in list(sys.modules):
        if name.startswith(("connectors.redis", "connectors.alert", "connectors.deliveries")):
            monkeypatch.delitem(sys.modules, name)

    class Without:
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] == library:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Without(), *sys.meta_path])
    with pytest.raises(
        SettingsError, match=rf"needs the library {library}.*pip install 'tidegate\[{extra}\]'"
    ):
        load(f"{module}:Anything")


def test_every_extra_that_is_named_is_there() -> None:
    assert {*extras.OF_CONNECTOR.values(), *extras.OF_LIBRARY.values()} <= set(EXTRAS)


def test_what_is_none_of_ours_is_left_alone() -> None:
    assert extras.missing(ModuleNotFoundError("x", name="my_rules")) is None
