"""What hostile clients cost the good ones: how long checks take while all kinds are at it, beside how long without.

    python -m benchmarks.hostile [--rounds 3]        # TIDEGATE_HOSTILE_SECONDS=120 of attack in all, unless set

Starts `tidegate serve` on core 0. On the other core good clients check the gate, in turn with and without a process
that attacks in every way of tests/serving/http/hostile.py at once, with fewer rights to that core. The ratio of the
99th percentiles is taken round by round; the goal is 3 at most. Memory of the service has to stay within its bound, and
in the end everything has to work as before: streams, checks, and no traceback in the log.
"""

import argparse
import asyncio
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

import httpx
import numpy as np

from tests.serving.http.hostile import ask_well, attack_again, attacks, memory
from tests.serving.http.served import Served

SECONDS: Final = float(os.environ.get("TIDEGATE_HOSTILE_SECONDS", "120"))
GOAL: Final = 3.0
MEGABYTES_MAX: Final = 150.0
GOOD, HALF_OPEN, EACH = 4, 250, 2
SERVER_CORE, CLIENT_CORE = 0, 1
SETTLE_S: Final = 1.0

processes = multiprocessing.get_context("spawn")


def attack(url: str, token: str, seconds: float) -> None:
    """Attack in all ways at once for so long."""
    os.nice(10)

    async def all_of_them() -> None:
        until, where = time.monotonic() + seconds, httpx.URL(url)
        kinds = [attack_again(where, one, until) for one in attacks(token).values() for _ in range(EACH)]
        await asyncio.gather(*kinds, *(attack_again(where, (b"", b"", 1), until) for _ in range(HALF_OPEN)))

    asyncio.run(all_of_them())


def ask(url: str, token: str, seconds: float) -> list[float]:
    """Return how long each check of the good clients took (s)."""
    took: list[float] = []

    async def clients() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(ask_well(httpx.URL(url), token, until, took) for _ in range(GOOD)))

    asyncio.run(clients())
    return took


def measure(served: Served, seconds: float) -> tuple[float, float, float]:
    """Return the 99th percentile without and with attackers (ms), and the most memory meanwhile (MB)."""
    quiet = ask(served.url, served.tokens["check"], seconds)
    attacker: BaseProcess = processes.Process(
        target=attack, args=(served.url, served.tokens["acme"], seconds + 2 * SETTLE_S)
    )
    attacker.start()
    try:
        time.sleep(SETTLE_S)
        with ThreadPoolExecutor(1) as watching:
            peak = watching.submit(most_memory, served, seconds)
            hostile = ask(served.url, served.tokens["check"], seconds)
    finally:
        attacker.join(30)
        attacker.kill()
    return float(np.percentile(quiet, 99)) * 1e3, float(np.percentile(hostile, 99)) * 1e3, peak.result()


def most_memory(served: Served, seconds: float) -> float:
    """Return the most memory (MB) that the service has within so many seconds, looked at often."""
    until, most = time.monotonic() + seconds, 0.0
    while time.monotonic() < until:
        most = max(most, memory(served))
        time.sleep(0.1)
    return most


def check_recovered(served: Served) -> None:
    with served.client("acme").stream("GET", "/v1/customers/acme/stream") as response:
        assert response.status_code == 200, "a stream has its place again"
    answer = served.client("check").get("/v1/check?customer=good&meter=calls")
    assert answer.status_code == 200 and "Traceback" not in served.said()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with TemporaryDirectory(prefix="tidegate-hostile-") as folder:
        served = Served(Path(folder), connections_max="200", streams_max="50")
        try:
            _place(served)
            ask(served.url, served.tokens["check"], 2.0)
            before, ratios, grown = memory(served), [], 0.0
            for number in range(rounds):
                quiet, hostile, most = measure(served, SECONDS / rounds)
                ratios.append(hostile / quiet)
                grown = max(grown, most - before)
                print(
                    f"round {number + 1}: p99 {quiet:.1f} ms, attacked {hostile:.1f} ms: {ratios[-1]:.2f} times"
                )
            check_recovered(served)
        finally:
            served.stop()
    print(
        f"good clients' p99 under attack: {median(ratios):.2f} times that without (goal {GOAL:g} at most);"
        f" memory +{grown:.0f} MB (bound {MEGABYTES_MAX:.0f}); all recovered"
    )
    if median(ratios) > GOAL or grown > MEGABYTES_MAX:
        raise SystemExit(1)


def _place(served: Served) -> None:
    """Keep the service and its clients on cores of their own, where there are two."""
    assert served.process is not None
    for thread in Path(f"/proc/{served.process.pid}/task").iterdir():
        with suppress(OSError):
            os.sched_setaffinity(int(thread.name), {SERVER_CORE})
    with suppress(OSError):
        os.sched_setaffinity(0, {CLIENT_CORE})


if __name__ == "__main__":
    main()
