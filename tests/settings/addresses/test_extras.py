"""A library that is not installed is named with the extra that has it."""

import sys
import tomllib

import pytest

from tests.support.places import ROOT
from tidegate.settings.addresses import extras
from tidegate.settings.addresses.address import load
from tidegate.settings.problems import SettingsError

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("tidegate.connectors.kafka.source", "confluent_kafka", "kafka"),
        ("tidegate.connectors.redis.writer", "redis", "redis"),
        ("tidegate.connectors.alerts.webhook", "httpx", "webhook"),
        ("tidegate.connectors.alerts.slack", "httpx", "slack"),
        ("tidegate.connectors.alerts.mail", "jinja2", "smtp"),
    ],
)
def test_a_connector_names_its_extra(
    module: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = ("tidegate.connectors.kafka.", "tidegate.connectors.redis.", "tidegate.connectors.alerts.")
    for name in list(sys.modules):
        if name.partition(".")[0] == library or name.startswith(ours):
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
