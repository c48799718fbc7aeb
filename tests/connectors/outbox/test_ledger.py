"""The ledger: what reconciliation knows of sent usage after the outbox let go of it."""

import json
import random
from datetime import timedelta
from pathlib import Path

import pytest

from tidegate.connectors.outbox import operator_actions
from tidegate.connectors.outbox.ledger import Kept, Ledger, LedgerError, LedgerReader, ledger_path
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.outbox.schema import State
from tidegate.operators.model.periods import HOUR
from tidegate.operators.model.records import Accepted

SECOND = 1_000_000
NOON = 1_795_348_800_000_000


class Clock:
    def __init__(self, now: int = NOON) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def accepted(number: int, at: int, customer: str = "acme") -> Accepted:
    body = {
        "event_id": f"e{number}",
        "customer_id": customer,
        "event_name": "n",
        "metadata": {"tokens": number},
    }
    return Accepted(f"{number:032x}-{at // HOUR:x}", customer, at, "on_time", json.dumps(body).encode())


def opened(folder: Path, clock: Clock, **given: int) -> Outbox:
    path = folder / "outbox.db"
    ledger = Ledger(ledger_path(path), keep=timedelta(days=35), clock=clock, **given)
    return Outbox(path, sync=False, ledger=ledger, clock=clock)


def settle(outbox: Outbox, events: list[Accepted]) -> None:
    outbox.add(events)
    rows = outbox.oldest(10_000)
    outbox.sending(rows)
    outbox.acknowledge(rows)


def run(outbox: Outbox, clock: Clock, seconds: int, step: int = 20) -> None:
    for _ in range(seconds // step):
        clock.now += step * SECOND
        while outbox.tidy():
            pass


def test_what_the_outbox_forgets_the_ledger_has_whole(tmp_path: Path) -> None:
    """A lost event can be told, and sent again, days after the outbox forgot it."""
    clock = Clock()
    outbox = opened(tmp_path, clock)
    events = [accepted(n, NOON - n * 700 % 3000 * SECOND, f"c{n % 7}") for n in range(500)]
    settle(outbox, events)
    run(outbox, clock, 26 * 60)
    reader = OutboxReader(outbox.path)
    assert {entry.body for entry in reader.find([e.id for e in events]).values()} == {None}
    outbox.add([], snapshot=True)
    run(outbox, clock, 3 * 3600)
    outbox.add([], snapshot=True)
    run(outbox, clock, 60)
    assert reader.find([e.id for e in events]) == {}
    ledger = LedgerReader(ledger_path(outbox.path))
    found = {e.id: e for n in range(7) for e in ledger.events(f"c{n}", NOON - 2 * HOUR, NOON + HOUR)}
    assert {(e.id, e.customer, e.at, e.body) for e in found.values()} == {
        (e.id, e.customer, e.at, e.payload) for e in events
    }
    assert ledger.since() == NOON


def test_only_the_events_asked_for_come(tmp_path: Path) -> None:
    clock = Clock()
    outbox = opened(tmp_path, clock)
    settle(
        outbox, [accepted(1, NOON - 1), accepted(2, NOON), accepted(3, NOON + 1), accepted(4, NOON, "other")]
    )
    run(outbox, clock, 26 * 60)
    ledger = LedgerReader(ledger_path(outbox.path))
    assert [e.at for e in ledger.events("acme", NOON, NOON + 1)] == [NOON]


def test_the_oldest_hours_go_first(tmp_path: Path) -> None:
    """By age and by size, and it says from when on it is whole."""
    clock = Clock()
    ledger = Ledger(tmp_path / "l.db", keep=timedelta(days=2), bytes_max=400_000, clock=clock)
    noise = random.Random(1)
    for hour in range(100):
        clock.now = NOON + hour * HOUR
        bodies = [noise.randbytes(2000) if hour > 80 else b"x" for _ in range(20)]
        ledger.add(
            Kept(f"{hour}-{n}", "acme", clock.now, None, None, clock.now, b) for n, b in enumerate(bodies)
        )
    reader = LedgerReader(tmp_path / "l.db")
    hours = sorted({(e.at - NOON) // HOUR for e in reader.events("acme", NOON, NOON + 200 * HOUR)})
    assert hours == list(range(hours[0], 100)) and hours[0] > 80
    assert reader.since() == NOON + hours[0] * HOUR
    assert reader.sizes()[1] <= 500_000


def test_a_restored_event_waits_once_for_one_reason(tmp_path: Path) -> None:
    """A repair that is killed and made again must not send the same thing over and over."""
    clock = Clock()
    outbox = opened(tmp_path, clock)
    known, forgotten = accepted(1, NOON), accepted(2, NOON)
    settle(outbox, [known])
    assert operator_actions.restore(outbox, [known, forgotten], by="r", why="pass 1") == [
        known.id,
        forgotten.id,
    ]
    assert operator_actions.restore(outbox, [known, forgotten], by="r", why="pass 1") == []
    reader = OutboxReader(outbox.path)
    assert {e.state for e in reader.find([known.id, forgotten.id]).values()} == {State.waiting}
    assert reader.read_statistics().waiting == 2
    rows = outbox.oldest(10)
    outbox.acknowledge(rows)
    assert operator_actions.restore(outbox, [known], by="r", why="pass 1") == []
    assert operator_actions.restore(outbox, [known], by="r", why="pass 2") == [known.id]
    assert reader.read_statistics().waiting == 1


def test_billing_goes_on_where_the_ledger_cannot_be_written(tmp_path: Path) -> None:
    """It only explains; what it could not take stays in the outbox, and somebody is told."""
    clock = Clock()
    outbox = opened(tmp_path, clock)
    settle(outbox, [accepted(1, NOON)])
    assert outbox._ledger is not None
    outbox._ledger._file.db.execute("DROP TABLE blocks")
    outbox.add([], snapshot=True)
    run(outbox, clock, 4 * 3600)
    reader = OutboxReader(outbox.path)
    entry = reader.find([accepted(1, NOON).id])[accepted(1, NOON).id]
    assert entry.body is not None and "ledger" in reader.read_statistics().alerts


def test_another_file_is_not_a_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no such file"):
        LedgerReader(tmp_path / "none.db")
    (tmp_path / "other.db").write_bytes(b"no database, but long enough to be read as one" * 100)
    with pytest.raises(LedgerError):
        LedgerReader(tmp_path / "other.db")


def test_an_event_costs_less_than_a_hundred_bytes(tmp_path: Path) -> None:
    """What operations.md says of its size on disk."""
    clock = Clock()
    ledger = Ledger(tmp_path / "l.db", keep=timedelta(days=35), clock=clock)
    noise = random.Random(1)
    customers = [f"cus_{noise.getrandbits(80):020x}" for _ in range(300)]
    for _ in range(4):
        events = []
        for _ in range(5000):
            at = NOON + noise.randrange(600 * SECOND)
            data = {
                "tokens": noise.randrange(5000),
                "model": noise.choice(["small", "large"]),
                "cached": False,
            }
            body = {
                "specversion": "1.0", "id": f"{noise.getrandbits(64):016x}", "source": "/api/eu-1",
                "type": "llm.tokens", "subject": noise.choice(customers), "time": "2026-11-22T10:00:00.250Z",
                "data": data,
            }  # fmt: skip
            id = f"{noise.getrandbits(128):032x}-{at // HOUR:x}"
            payload = json.dumps(body).encode()
            events.append(Kept(id, str(body["subject"]), at, at + SECOND, None, at + 2 * SECOND, payload))
        ledger.add(events)
    held, size = LedgerReader(tmp_path / "l.db").sizes()
    print(f"{size / held:.0f} bytes an event, of {len(payload)}")
    assert held == 20_000 and size / held < 100
