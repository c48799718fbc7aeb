"""Metering and billing in real processes that are killed, against a platform that does everything wrong it can.

Afterwards the provider holds each accepted event exactly once, or it is held back with its reason, and nothing else.
TIDEGATE_BILLING_SEEDS says how many runs; the whole campaign is 300.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from simulator.client import Simulator
from tests.faults.support.fork_server import PLACES, Birth, Death, ForkServer, Phase
from tests.support.options import option
from tests.support.platform import KEY, PlatformProcess
from tidegate.connectors.clock import wall_clock
from tidegate.connectors.dodo.client import DodoClient
from tidegate.connectors.dodo.sender import SHOWS_AFTER, Sender, Terms
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.reader import Entry, OutboxReader
from tidegate.connectors.outbox.schema import State
from tidegate.operators.billing.rate_limit import TIERS
from tidegate.settings.catalog.file import load_catalog

SEEDS = int(option("TIDEGATE_BILLING_SEEDS", "3"))
# Of 300, 50 are asked for.
LOST_SHARE = 1 / 6
BILLED = ("acme", "bolt", "core", "dune")
CATALOG = """
meters:
  - {name: tokens, event_name: llm, aggregation: {type: sum, key: tokens}}
  - {name: small, event_name: llm, aggregation: {type: count},
     filter: {conjunction: and, clauses: [{key: model, operator: equals, value: small}]}}
plans:
  free: {period: {type: calendar, every: month}}
customers:
"""
FAULTS: list[dict[str, Any]] = [
    {"kind": "rate_limited"},
    {"kind": "rate_limited", "retry_after": "0"},
    {"kind": "error", "status": 500},
    {"kind": "error", "status": 503},
    {"kind": "error_after_commit", "status": 502},
    {"kind": "reset"},
    {"kind": "reset_after_commit"},
    {"kind": "hang", "delay_s": 0.05},
    {"kind": "hang_after_commit", "delay_s": 0.05},
    {"kind": "slow", "delay_s": 0.05},
    {"kind": "html"},
    {"kind": "html", "commit": False},
    {"kind": "truncated"},
    {"kind": "no_count"},
]
# Of what was stored nobody is told.
LOSES = ("error_after_commit", "reset_after_commit", "hang_after_commit", "html", "truncated", "no_count")
lost_answers: Counter[str] = Counter()
killed: Counter[str] = Counter()


class Sent(NamedTuple):
    """An event as it was made up: its number is in its properties."""

    customer: str
    at: int
    is_long: bool


@pytest.fixture(scope="module")
def platform() -> Iterator[PlatformProcess]:
    process = PlatformProcess()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


def made_up(rng: random.Random, folder: Path) -> dict[int, Sent]:
    """Lines of input with some repeats, their catalog, and the events by number."""
    now = wall_clock()
    minute = 60_000_000
    events, lines = {}, []
    for number in range(rng.randint(100, 400)):
        customer = rng.choice((*BILLED * 4, "unmapped", "stranger", "cus_direct"))
        ago = rng.choice((0.5, 10, 30, 50, 54.97, 56, 120)) * rng.random() if rng.random() < 0.8 else 54.99
        at = now - int((ago if rng.random() < 0.97 else -3) * minute)
        events[number] = Sent(customer, at, rng.random() < 0.01)
        model = "x" * 501 if events[number].is_long else rng.choice(("small", "large"))
        time = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)).isoformat()
        data = {"n": number, "tokens": rng.randint(0, 1000), "model": model, "deep": {"x": 1}}
        fields = {"specversion": "1.0", "id": f"e{number}", "source": "s", "type": "llm", "subject": customer}
        lines.append(json.dumps(fields | {"time": time, "data": data}))
    lines += rng.sample(lines, len(lines) // 10)
    (folder / "in.ndjson").write_text("".join(f"{line}\n" for line in lines))
    mapped = [f"  {name}: {{plan: free, billing_id: cus_{name}}}\n" for name in (*BILLED, "stranger")]
    (folder / "catalog.yaml").write_text(f"{CATALOG}{''.join(mapped)}  unmapped: {{plan: free}}\n")
    return events


def misbehaving(rng: random.Random, simulator: Simulator, seed: int) -> str:
    """The provider of a seed; which part of an id it calls poison."""
    simulator.reset(seed)
    simulator.set_tier("2")
    simulator.set_switches(
        atomic_batches=rng.random() < 0.6,
        swap_400_422=rng.random() < 0.3,
        ingested_count_mode=rng.choice(("new_only", "accepted")),
        expired_dup=rng.choice(("reject", "ignore")),
        unknown_customer=rng.choice(("reject400", "reject400", "accept_unattributed")),
        event_visibility_lag_s=rng.choice((0, 0, 2)),
    )
    for name in (*BILLED, "direct"):
        simulator.create_customer(f"cus_{name}")
    for fault in rng.sample(FAULTS, rng.randint(1, 5)):
        simulator.add_fault(**fault, times=rng.randint(1, 4), probability=rng.uniform(0.3, 1))
    if rng.random() < 0.3:
        simulator.add_fault(**rng.choice(FAULTS), where="reads", times=2)
    poison = f"{rng.randrange(16**3):03x}"
    if rng.random() < 0.6:
        simulator.add_fault("refuse", match=poison, status=rng.choice((400, 422)), times=None)
    return poison


def settings(platform: PlatformProcess) -> dict[str, str]:
    return {
        "SOURCE": "file:in.ndjson",
        "CATALOG": "catalog.yaml",
        "STORE": "sqlite:store.db",
        "ALERTS": "file:alerts.ndjson",
        "DEAD_LETTERS": "file:dead.ndjson",
        "BRANCHES": "store,alerts,billing",
        "BILLING": f"dodo:{platform.url.removeprefix('http:')}?tls=false&tier=2&linger=20ms&drain=30s",
        "DODO_API_KEY": KEY,
        "DATA_DIR": "state",
        "POLL_BYTES": "4096",
        "SHARDS": "4",
        "SYNC": "false",
    }


def death(rng: random.Random) -> Death:
    if rng.random() < 0.3:
        return Death("time", seconds=rng.random() * 0.6)
    phases: tuple[Phase, ...] = ("before", "after", "half")
    phase = rng.choice(phases)
    return Death(rng.choice(PLACES), rng.choice((1, 1, 2, 3, 5, 8)), phase)


def settle(path: Path, catalog: Path, simulator: Simulator) -> None:
    """What is held back for a minute, as an answer is missing, is decided: the minute passes, for all."""
    ahead = SHOWS_AFTER + 1_000_000
    simulator.advance(ahead / 1e6)
    loaded = load_catalog(catalog)
    with closing(Outbox(path, sync=False, clock=lambda: wall_clock() + ahead)) as outbox:
        client = DodoClient(simulator.url, KEY, TIERS[2])
        sender = Sender(outbox, client, lambda: loaded, Terms(), clock=lambda: wall_clock() + ahead)
        for _ in range(200):
            if sender.turn(linger=False) is None:
                break
        client.close()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_each_event_is_at_the_platform_once_or_kept_back_with_its_reason(
    seed: int, tmp_path: Path, platform: PlatformProcess, fork_server: ForkServer
) -> None:
    rng = random.Random(f"billing {seed}")
    events = made_up(rng, tmp_path)
    poison = misbehaving(rng, platform.simulator, seed)
    ends = Counter[str]()
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        ordered = death(rng)
        code = fork_server.run(Birth(str(tmp_path), settings(platform), ordered))
        assert code in (0, -9, -14), (code, (tmp_path / "said").read_text())
        if code:
            ends[f"{ordered.place} {ordered.phase}"] += 1
    code = fork_server.run(Birth(str(tmp_path), settings(platform)))
    said = (tmp_path / "said").read_text()
    assert code == 0, said
    log = [request for request in platform.simulator.list_requests() if request["path"] == "/events/ingest"]
    lost = [request["fault"] for request in log if request["stored"] and request["fault"] in LOSES]
    killed.update(ends)
    lost_answers.update(set(lost))
    lost_answers["seeds"] += bool(lost)
    platform.simulator.clear_faults()
    settle(tmp_path / "state" / "outbox.db", tmp_path / "catalog.yaml", platform.simulator)
    judge(events, poison, tmp_path / "state" / "outbox.db", list(platform.simulator.list_events()))
    shutil.rmtree(tmp_path)


def judge(events: dict[int, Sent], poison: str, path: Path, stored: list[dict[str, Any]]) -> None:
    """Compares what was made up with what the provider holds and the outbox says."""
    with closing(OutboxReader(path)) as reader:
        statistics = reader.read_statistics()
        kept = {state: reader.held_back(state, limit=10_000) for state in (State.parked, State.refused)}
        acknowledged = {
            id for id, entry in reader.find(event["event_id"] for event in stored).items()
            if entry.state is State.acknowledged
        }  # fmt: skip
    there = {event["event_id"] for event in stored}
    assert len(there) == len(stored), "an event is there twice"
    assert there == acknowledged, "the provider has what the outbox does not know of"
    assert statistics.waiting == 0
    assert statistics.counts["came"] == len(events)
    assert statistics.counts["acknowledged"] == len(there)
    seen = [event["metadata"]["n"] for event in stored]
    for event in stored:
        as_made(events[event["metadata"]["n"]], event)
    for entry in (*kept[State.parked], *kept[State.refused]):
        seen.append(json.loads(entry.body or b"")["data"]["n"])
        assert entry.id not in there
        with_reason(events[seen[-1]], entry, poison)
    assert sorted(seen) == sorted(events)


def as_made(sent: Sent, event: dict[str, Any]) -> None:
    direct = sent.customer.startswith("cus_")
    assert event["customer_id"] == (sent.customer if direct else f"cus_{sent.customer}")
    time = event["metadata"].get("orig_ts", event["timestamp"])
    assert datetime.fromisoformat(time) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=sent.at)
    assert "deep" not in event["metadata"]


def with_reason(sent: Sent, entry: Entry, poison: str) -> None:
    """The reason is a true one."""
    match entry.state, entry.reason:
        case State.parked, "no_billing_id":
            assert sent.customer == "unmapped"
        case State.parked, "unknown_customer":
            assert sent.customer == "stranger"
        case State.parked, "period_closed":
            assert wall_clock() - sent.at > 55 * 60_000_000
        case State.refused, "value_too_long":
            assert sent.is_long
        case State.refused, "refused_by_platform":
            assert poison in entry.id, entry
        case _:
            raise AssertionError(entry)


def test_answers_were_lost_often_enough() -> None:
    """A campaign that never loses an answer proves nothing about it."""
    if SEEDS >= 30:
        assert lost_answers["seeds"] >= LOST_SHARE * SEEDS
        assert sum(killed.values()) >= SEEDS / 3
