"""A crowd of clients against one cap, and a flow that counts what they use; all of them real processes that get killed.

A client asks the gate and, if it may, sends an event: one line appended to a file. The flow reads the file, counts each
identity once and writes totals with the identities that they settle, as the metering flow does; killed, it begins at
the start again. With `reserve` the total must never exceed the cap, whoever dies when; with `check` alone it does, by
what is let pass before the totals show it.
"""

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from benchmarks.ended import ENDED
from tidegate.connectors.clock import wall_clock
from tidegate.operators.columns.quantity import SCALE
from tidegate.operators.events.keys import compute_identity
from tidegate.operators.gate.decision import Decision
from tidegate.operators.model.periods import Calendar, find_period
from tidegate.operators.model.ports import Holds, Scope, Settled
from tidegate.operators.model.records import Total
from tidegate.serving.gate import Gate
from tidegate.settings.addresses.stores import Store, StoreAddress

How = Literal["reserve", "check"]

CUSTOMER, METER = "acme", "calls"
CATALOG = """\
meters: [{{name: calls, event_name: call, aggregation: {{type: count}}}}]
default_plan: p
plans: {{p: {{limits: {{calls: {{cap: {cap}, fail: closed}}}}}}}}
"""
# Longer than any run, so that nothing expires while its event is on its way.
EXPIRES_IN = timedelta(hours=1)
TIMEOUT = timedelta(seconds=10)
BATCH_BYTES = 1 << 16

processes = multiprocessing.get_context("spawn")


class Outcome(NamedTuple):
    """What a run came to: events sent, the total, and what was held in the end.

    `rate` is how many were sent a second. `staleness_p99` is how long before a decision the oldest event had been
    sent that it knew nothing of, in seconds, at the 99th of a hundred decisions; of `check` alone.
    """

    sent: int
    total: int
    held: int
    rate: float
    staleness_p99: float


@dataclass(frozen=True)
class Crowd:
    """`processes_` × `threads` clients at an empty store; events lie in `folder`."""

    folder: Path
    store: str
    how: How
    cap: int
    processes_: int
    threads: int
    seed: int
    pause: float = 0.0
    """Seconds that a client takes between two requests."""

    @property
    def events(self) -> Path:
        return self.folder / "events"

    def run(self, kills: int) -> Outcome:
        """Until every client has been denied; meanwhile `kills` processes die and are started again."""
        address_of(self.store).make()
        with closing(address_of(self.store).open_writer(resumed=False)) as writer:
            writer.write([], [], heartbeats=[ENDED])
        with closing(address_of(self.store).open_control()) as control:
            control.apply(CATALOG.format(cap=self.cap), origin="cli", by="benchmark")
        self.events.touch()
        rng = random.Random(self.seed)
        stop, ready = processes.Event(), processes.Event()
        flow = self._started(_flow, stop, ready)
        # What is sent before it is up would be stale for no fault of the gate's.
        ready.wait(60)
        clients = [self._started(_clients, n) for n in range(self.processes_)]
        numbers = count(self.processes_)
        try:
            for _ in range(kills):
                time.sleep(rng.random() * 0.3)
                if rng.random() < 0.3:
                    _kill(flow)
                    flow = self._started(_flow, stop, ready)
                else:
                    place = rng.randrange(len(clients))
                    _kill(clients[place])
                    clients[place] = self._started(_clients, next(numbers))
            for client in clients:
                client.join()
                assert client.exitcode == 0
            stop.set()
            flow.join()
            assert flow.exitcode == 0
        finally:
            for process in (flow, *clients):
                _kill(process)
        return self._outcome()

    def _started(self, target: Any, *arguments: Any) -> BaseProcess:
        process = processes.Process(target=target, args=(self, *arguments), daemon=True)
        process.start()
        return process

    def _outcome(self) -> Outcome:
        now = wall_clock()
        scope = Scope((METER,), find_period(Calendar("month"), "UTC", now)[0])
        with closing(holds_of(self.store)) as holds:
            account = holds.account(CUSTOMER, scope, now)
            later = holds.account(CUSTOMER, scope, now + 2 * EXPIRES_IN // timedelta(microseconds=1))
        assert not later.held, "something is held for ever"
        sent = {id: float(at) for id, at in map(str.split, self.events.read_text().splitlines())}
        total = account.used[METER].total // SCALE if METER in account.used else 0
        at = np.sort(np.array(list(sent.values())))
        rate = len(at) / float(at[-1] - at[0]) if len(at) > 1 else 0.0
        return Outcome(len(sent), total, account.held.get(METER, 0) // SCALE, rate, self._staleness(at))

    def _staleness(self, sent: NDArray[np.float64]) -> float:
        """Events are counted in the order in which they were sent, or nearly: so a total says which it knows."""
        ages = [0.0]
        for path in self.folder.glob("decisions-*"):
            for decided, used in np.loadtxt(path, ndmin=2):
                unknown = int(used)
                ages.append(max(decided - sent[unknown], 0.0) if unknown < len(sent) else 0.0)
        return float(np.percentile(ages, 99))


def address_of(store: str) -> StoreAddress:
    """The address that this text is."""
    address: StoreAddress = TypeAdapter(Store).validate_python(store)
    return address


def holds_of(store: str) -> Holds:
    """The gate's end of a store, patient."""
    holds: Holds = address_of(store).open_holds(read_wait=TIMEOUT, write_wait=TIMEOUT)
    return holds


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def _clients(crowd: Crowd, number: int) -> None:
    """Threads that use what they may, until they are denied."""
    gate = Gate(holds_of(crowd.store), timeout=TIMEOUT, write_timeout=TIMEOUT)
    events = os.open(crowd.events, os.O_WRONLY | os.O_APPEND)

    decisions: list[tuple[float, int]] = []

    def client(thread: int) -> None:
        rng = random.Random(f"{crowd.seed} {number} {thread}")
        for n in count():
            id = f"{number}-{thread}-{n}"
            decision = _ask(gate, crowd.how, id)
            if decision.degraded:
                continue
            assert decision.used is not None
            decisions.append((time.monotonic(), int(decision.used)))
            if not decision.allowed:
                return
            if crowd.how == "reserve" and rng.random() < 0.1:
                gate.release(CUSTOMER, id)
                continue
            # One write of one line, which is whole or not there.
            os.write(events, f"{id} {time.monotonic()}\n".encode())
            if crowd.how == "reserve" and rng.random() < 0.3:
                gate.commit(CUSTOMER, id)
            time.sleep(crowd.pause * rng.random() * 2)

    threads = [threading.Thread(target=client, args=(thread,)) for thread in range(crowd.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gate.close()
    if crowd.how == "check":
        np.savetxt(crowd.folder / f"decisions-{number}", decisions)


def _ask(gate: Gate, how: str, id: str) -> Decision:
    if how == "check":
        return gate.check(CUSTOMER, METER)
    return gate.reserve(CUSTOMER, METER, 1, EXPIRES_IN, id=id)


def _flow(crowd: Crowd, stop: Any, ready: Any) -> None:
    """Counts each identity once, in order, and writes what it comes to."""
    start, end = find_period(Calendar("month"), "UTC", wall_clock())
    seen: set[str] = set()
    with closing(address_of(crowd.store).open_writer(resumed=True)) as writer:
        ready.set()
        for lines in _batches(crowd.events, stop):
            fresh = [id for id in dict.fromkeys(lines) if id not in seen]
            seen.update(fresh)
            keys = np.frombuffer(
                b"".join(compute_identity(CUSTOMER, "", id) for id in fresh), np.uint64
            ).reshape(-1, 2)
            known = len(seen)
            total = Total(
                CUSTOMER, "period", METER, start, end, known, known, known, wall_clock(), 0, 0, 0, True
            )
            writer.write([total], [], settled=[Settled(keys[:, 0].copy(), keys[:, 1].copy())])


def _batches(path: Path, stop: Any) -> Iterator[list[str]]:
    """The ids so far, and what comes, until `stop` is set and all has been read."""
    rest = b""
    with path.open("rb") as file:
        while True:
            ending = stop.is_set()
            read = rest + file.read(BATCH_BYTES)
            # A line that crosses a page may be seen in halves, whole though it was written.
            whole = read.rfind(b"\n") + 1
            lines, rest = read[:whole], read[whole:]
            if lines:
                yield [line.split(b" ")[0].decode() for line in lines.splitlines()]
            elif ending:
                return
            else:
                time.sleep(0.001)
