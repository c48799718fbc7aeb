"""The gate in several real processes: every one follows the catalog, and a crowd never gets more than there is."""

import asyncio
import os
import threading
import time
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crowd import Crowd
from tests.connectors.contracts.store import child, processes
from tests.serving.gate.fakes import METERS
from tests.serving.gate.test_sqlite_faults import write
from tests.support.heartbeats import ENDED
from tests.support.options import option
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.holds import SqliteHolds
from tidegate.connectors.sqlite.store import SqliteWriter
from tidegate.serving.gate import AsyncGate, Gate

SEEDS = int(option("TIDEGATE_GATE_SEEDS", "1"))
PATIENCE = 30

TWO_PLANS = "plans: {free: {limits: {calls: {cap: 5}}}, paid: {limits: {calls: {cap: 50}}}}\n"
CHANGES = {
    "the cap is where usage is": ("plans: {p: {limits: {calls: {cap: 5}}}}\ndefault_plan: p", False),
    "it is raised": ("plans: {p: {limits: {calls: {cap: 6}}}}\ndefault_plan: p", True),
    "it is lowered": ("plans: {p: {limits: {calls: {cap: 4}}}}\ndefault_plan: p", False),
    "it is removed": ("plans: {p: {}}\ndefault_plan: p", True),
    "the plan is another one": (f"{TWO_PLANS}customers: {{acme: {{plan: free}}}}", False),
    "the customer pays": (f"{TWO_PLANS}customers: {{acme: {{plan: paid}}}}", True),
    "the customer has a limit apart": (
        f"{TWO_PLANS}customers: {{acme: {{plan: paid, limits: {{calls: {{cap: 3}}}}}}}}",
        False,
    ),
}


def test_every_process_follows_the_catalog(tmp_path: Path) -> None:
    """Support raises a cap on the phone, and the customer's next request passes, wherever it lands."""
    path = tmp_path / "store.db"
    write(path, 5, 1)
    channel = processes.Queue()
    with (
        closing(SqliteControl(path)) as control,
        child(_ask, path, True, channel),
        child(_ask, path, False, channel),
        child(_ask_async, path, channel),
    ):
        seen: dict[int, tuple[int, bool]] = {}
        for name, (text, allowed) in CHANGES.items():
            number = control.apply(METERS + text, origin="api", by="me", note=name).number
            deadline = time.monotonic() + PATIENCE
            while len(seen) < 3 or any(asked_by != (number, allowed) for asked_by in seen.values()):
                process, catalog, answer = channel.get(timeout=deadline - time.monotonic())
                assert catalog >= seen.get(process, (0, False))[0], "back to an older one"
                seen[process] = (catalog, answer)
                if catalog == number:
                    assert answer == allowed, name


def _ask(path: Path, near: bool, channel: Any) -> None:
    with Gate(SqliteHolds(path), near=near) as gate:
        last = None
        while True:
            decision = gate.check("acme", "calls")
            if not decision.degraded and (decision.catalog, decision.allowed) != last:
                last = (decision.catalog, decision.allowed)
                channel.put((os.getpid(), *last))


def _ask_async(path: Path, channel: Any) -> None:
    async def main() -> None:
        async with AsyncGate(SqliteHolds(path)) as gate:
            last = None
            while True:
                decision = await gate.check("acme", "calls")
                if not decision.degraded and (decision.catalog, decision.allowed) != last:
                    last = (decision.catalog, decision.allowed)
                    channel.put((os.getpid(), *last))
                await asyncio.sleep(0)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(SEEDS))
def test_with_reserve_a_crowd_never_exceeds_the_cap(tmp_path: Path, seed: int) -> None:
    """Whoever is killed when: nothing is granted twice, nothing counted twice, nothing held for ever."""
    crowd = Crowd(
        tmp_path, f"sqlite:{tmp_path}/store.db", "reserve", cap=300, processes_=2, threads=8, seed=seed
    )
    outcome = crowd.run(kills=5)
    assert outcome.total == outcome.sent
    assert outcome.total + outcome.held <= 300
    # All that is not used is what the dead took with them: a reserve without its event.
    assert outcome.total + outcome.held == 300 and outcome.held <= 5 * 8


def test_with_check_alone_a_crowd_goes_on_until_the_total_shows(tmp_path: Path) -> None:
    """Which is why there is a reserve: and it does stop."""
    crowd = Crowd(tmp_path, f"sqlite:{tmp_path}/store.db", "check", cap=200, processes_=2, threads=4, seed=0)
    outcome = crowd.run(kills=0)
    assert outcome.total == outcome.sent >= 200


PRICED = f"""\
{METERS}default_plan: p
plans:
  p:
    spend_cap: {{cap: 20, fail: closed}}
    limits: {{calls: {{tiers: [{{price: 0.5}}]}}, tokens: {{included: 10, tiers: [{{price: 0.25}}]}}}}
"""


def spend_all(gate: Gate) -> None:
    """Twelve threads reserve on two meters until the money is spent, which it is to the last quarter."""
    granted: list[Decimal] = []

    def client(number: int) -> None:
        meter, quantity = ("calls", 1) if number % 2 else ("tokens", 2)
        # All of them could be one's own, and a busy store may answer too late once.
        for n in range(200):
            decision = gate.reserve("rich", meter, quantity, id=f"{number}-{n}")
            if not decision.allowed and not decision.degraded:
                return
            if decision.allowed:
                granted.append(Decimal("0.5"))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    decision = gate.check("rich", "calls")
    assert (decision.allowed, decision.scope) == (False, "spend")
    assert (decision.reserved, decision.remaining) == (Decimal(20), Decimal(0))
    # Ten tokens were included.
    assert sum(granted) == 20 + Decimal("0.25") * 10


def test_a_crowd_never_spends_more_than_the_spend_cap(tmp_path: Path) -> None:
    """Money hangs on all meters at once, and everybody reserves on another one."""
    path = tmp_path / "store.db"
    with closing(SqliteControl(path)) as control:
        control.apply(PRICED, origin="cli", by="me")
    with closing(SqliteWriter(path)) as writer:
        writer.write([], [], heartbeats=[ENDED])
    long = timedelta(seconds=PATIENCE)
    with Gate(SqliteHolds(path, write_wait=long), near=False, timeout=long, write_timeout=long) as gate:
        spend_all(gate)
