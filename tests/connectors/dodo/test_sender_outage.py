"""Three hours without the provider, over midnight, when a billing period ends."""

from pathlib import Path

import pytest

from tests.connectors.dodo.billing_world import MINUTE, SECOND, World, world
from tidegate.connectors.dodo.sender import Terms
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.outbox.schema import State
from tidegate.operators.billing.outgoing import AGE_MAX
from tidegate.operators.model.records import Accepted

HOURS = 3
TO_MIDNIGHT = 100


def outlasted(here: World, kind: str) -> list[Accepted]:
    """Usage of each minute of an outage that begins before midnight, and what comes of it."""
    # From noon.
    here.wait((12 * 60 - TO_MIDNIGHT) * 60)
    here.sender.turn()
    here.simulator.add_fault(kind, times=None, for_s=HOURS * 3600)
    until = here.now + HOURS * 60 * MINUTE
    came: list[Accepted] = []
    due = here.now

    def minutely() -> None:
        nonlocal due
        while due <= min(here.now, until):
            came.extend(here.come(10))
            due += MINUTE

    while here.now < until + MINUTE:
        here.turns(60, minutely)
        here.wait(1)
    here.turns()
    return came


@pytest.mark.parametrize("kind", ["error", "hang"])
def test_nothing_is_lost_and_exactly_what_is_too_old_is_billed_late(tmp_path: Path, kind: str) -> None:
    with world(tmp_path) as here:
        came = outlasted(here, kind)
        here.conserved(came)
        assert here.waiting == 0
        assert len(came) == 10 * (HOURS * 60 + 1)
        ledger = here.ledger()
        reader = OutboxReader(here.path)
        found = reader.find(event.id for event in came)
        reader.close()
        midnight = -(-came[0].at // (24 * 60 * MINUTE)) * 24 * 60 * MINUTE
        for event in came:
            entry = found[event.id]
            if event.at < midnight:
                assert (entry.state, entry.reason) == (State.parked, "period_closed")
                continue
            assert entry.state is State.acknowledged and entry.settled_at
            late = "orig_ts" in ledger[event.id]["metadata"]
            assert late == (entry.restamped_at is not None)
            age = (entry.restamped_at or entry.settled_at) - event.at
            assert age > AGE_MAX if late else age <= AGE_MAX + SECOND
        billed_late = sum("orig_ts" in event["metadata"] for event in ledger.values())
        assert 200 < billed_late < 300 < len(ledger)


def test_with_park_nothing_is_billed_at_another_time_than_its_own(tmp_path: Path) -> None:
    with world(tmp_path, Terms(late="park", concurrency=1)) as here:
        came = outlasted(here, "error")
        here.conserved(came)
        assert here.waiting == 0
        assert here.reasons() == {"too_old": len(came) - len(here.ledger())}
        assert all("orig_ts" not in event["metadata"] for event in here.ledger().values())
        assert 500 < len(here.ledger()) < 600
        # Only what was tried with needs to be asked for.
        assert here.lookups() < 200


def test_the_alert_comes_within_the_first_25_minutes(tmp_path: Path) -> None:
    with world(tmp_path) as here:
        here.simulator.add_fault("error", times=None)
        here.come(1)
        here.turns(25 * 60)
        reader = OutboxReader(here.path)
        why, alert = reader.alerts()
        reader.close()
        assert (why.kind, alert.kind, alert.state) == ("unreachable", "old", "raised")
        assert alert.at - here.now < -4 * MINUTE
