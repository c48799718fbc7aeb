"""The address of the provider: never live by default, never with the key in it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, TypeAdapter

from tidegate.operators.billing.rate_limit import TIERS
from tidegate.settings.addresses.sinks import Billing, Dodo
from tidegate.settings.problems import SettingsError
from tidegate.settings.settings import load_settings

SECRET = "hunter2"


def read(text: str) -> Dodo:
    found = TypeAdapter(Billing).validate_python(text)
    assert isinstance(found, Dodo)
    return found


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("dodo:test", "https://test.dodopayments.com"),
        ("dodo:live", "https://live.dodopayments.com"),
        ("dodo://127.0.0.1:8080?tls=false", "http://127.0.0.1:8080"),
        ("dodo://proxy.example", "https://proxy.example"),
    ],
)
def test_where_it_leads(text: str, url: str) -> None:
    assert read(text).base_url == url
    assert str(read(text)) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dodo:", "needs dodo:test, dodo:live or dodo://HOST:PORT, as live must never be a default"),
        ("dodo:prod", "needs test or live"),
        ("dodo:test?tls=false", "needs tls"),
        ("dodo://h/test", "needs dodo:test"),
        ("dodo://a,b", "needs 1 entries or less"),
        ("dodo:test?key=hunter2", "KEY: is unknown"),
        ("dodo://hunter2@h", "is unknown"),
        ("dodo:test?share=0", "needs more than 0"),
        ("dodo:test?late=drop", "needs restamp or park"),
        ("dodo:test?rollup=2m", "needs none, 1m or 5m"),
    ],
)
def test_what_is_wrong_is_said_without_what_came(text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"source": "demo:", "billing": text})
    assert problem in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_key_is_shown_by_nothing() -> None:
    settings = load_settings({"source": "demo:", "billing": "dodo:test", "dodo_api_key": SECRET})
    assert settings.dodo_api_key is not None and settings.dodo_api_key.get_secret_value() == SECRET
    assert SECRET not in f"{settings!r} {settings} {settings.billing!r}"


@pytest.mark.parametrize("key", [None, "", "two words", "line\nbreak", "ümlaut", "x" * 513])
def test_a_key_that_cannot_be_one_is_refused_unseen(key: str | None) -> None:
    secret = None if key is None else SecretStr(key)
    with pytest.raises(SettingsError, match="TIDEGATE_DODO_API_KEY") as caught:
        read("dodo:test").open_client(secret)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("tier", [0, 1, 2])
@pytest.mark.parametrize("share", [1, 0.5, 0.01])
@pytest.mark.parametrize("reads", [0, 60, 3000])
def test_sending_and_reading_together_keep_to_the_share(tier: int, share: float, reads: int) -> None:
    sending, reading = read(f"dodo:test?tier={tier}&share={share}&reads={reads}").rates()
    whole = TIERS[tier].scale(share)
    if reads:
        # One request is the least of each.
        assert sending.sustained + reading.sustained <= max(whole.sustained, 2)
        assert sending.burst + reading.burst <= max(whole.burst, 2)
    else:
        assert sending == whole


def test_by_default_a_quarter_of_tier_0_is_left_to_reading() -> None:
    sending, reading = read("dodo:test").rates()
    assert (sending.sustained, reading.sustained) == (180, 60)


def test_the_outbox_lies_in_the_data_directory_unless_it_is_said_where() -> None:
    assert read("dodo:test").outbox_path(Path("/d")) == Path("/d/outbox.db")
    assert read("dodo:test?outbox=/x/o.db").outbox_path(Path("/d")) == Path("/x/o.db")


def test_the_sink_is_built_from_the_address(tmp_path: Path) -> None:
    given: dict[str, Any] = {"parts": 4, "catalog": lambda: None}
    text = "dodo:test?rollup=5m&late=park&linger=2s&unmapped=skip"
    sink = read(text).open(api_key=SecretStr("k"), data_dir=tmp_path, **given)
    assert sink.list_parts() == ["0000", "0001", "0002", "0003"]
    assert not list(tmp_path.iterdir()), "nothing is opened before it is needed"
