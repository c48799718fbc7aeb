"""Reconciliation against the simulated platform: what drifts is found and explained, what does not is left alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.metered import System, causes, system


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[System]:
    with system(tmp_path) as made:
        yield made


def test_a_lost_event_is_found_and_named(metered: System) -> None:
    acme, other = metered.customer(), metered.customer()
    metered.apply()
    ids = [metered.event(acme, tokens=n) for n in (5, 7, 11)]
    metered.event(other, tokens=3)
    metered.run(300)
    assert metered.reconcile() == {}
    metered.simulator.drop(ids[1])
    found = metered.reconcile()
    assert list(found) == [(acme, "tokens")]
    assert causes(found[acme, "tokens"]) == {"missing_there": "7"}
    assert found[acme, "tokens"]["findings"][0]["ids"] == [ids[1]]
