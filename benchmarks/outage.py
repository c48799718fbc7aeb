"""Does it matter to totals and caps whether the provider answers? From append to visible, with and without it.

    python -m benchmarks.outage [--seconds 20] [--rate 1000] [--rounds 3]

Two flows bill to a simulated platform each, at the same time, so that whatever else the machine does troubles both. One
platform answers, the other is out of order. The ratio of the medians is the answer; the goal is 1.1 at most.
"""

import argparse
import multiprocessing
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import latency
from benchmarks.generate import CATALOG_YAML
from benchmarks.latency import CUSTOMERS
from simulator.client import Simulator

GOAL = 1.1
WAYS = ("healthy", "outage")
KEY = "sim_key"


def simulated() -> "tuple[subprocess.Popen[str], Simulator]":
    """A platform in a process of its own."""
    command = [sys.executable, "-m", "simulator", "--port", "0", "--seed", "1", "--key", KEY]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, Simulator(process.stdout.readline().strip(), KEY)


def run(way: str, seconds: float, rate: int, medians: "multiprocessing.Queue[tuple[str, float]]") -> None:
    """One flow and its platform; puts the median from append to visible, in ms."""
    process, simulator = simulated()
    try:
        with TemporaryDirectory(prefix="tidegate-outage-") as folder:
            medians.put((way, measured(way, simulator, Path(folder) / way, seconds, rate)))
    finally:
        simulator.close()
        process.terminate()
        process.wait()


def measured(way: str, simulator: Simulator, directory: Path, seconds: float, rate: int) -> float:
    simulator.set_tier("1")
    simulator.set_switches(unknown_customer="accept_unattributed")
    if way == "outage":
        simulator.add_fault("error", status=503, times=None)
    names = (
        f"  cust-{number:06d}: {{plan: standard, billing_id: cus_{number}}}\n"
        for number in range(CUSTOMERS + 1)
    )
    catalog = CATALOG_YAML.replace("customers: {}\n", f"customers:\n{''.join(names)}")
    seen = latency.measure(
        directory,
        "10s",
        seconds,
        rate,
        catalog,
        billing=f"dodo:{simulator.url.removeprefix('http:')}?tls=false&tier=1",
        branches="store,alerts,billing",
        dodo_api_key=KEY,
    )
    billed = sum(request["stored"] for request in simulator.list_requests())
    print(f"{way:10}  p50 {seen.p50_ms:7.2f} ms  p99 {seen.p99_ms:7.2f} ms  billed {billed:,}", flush=True)
    return seen.p50_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=int, default=1000, help="events per second")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    ratios = []
    for _ in range(chosen.rounds):
        medians: multiprocessing.Queue[tuple[str, float]] = multiprocessing.Queue()
        given = (chosen.seconds, chosen.rate, medians)
        both = [multiprocessing.Process(target=run, args=(way, *given)) for way in WAYS]
        for process in both:
            process.start()
        found = dict(medians.get() for _ in both)
        for process in both:
            process.join()
        ratios.append(found["outage"] / found["healthy"])
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"outage / healthy, median of {shown}: {median(ratios):.2f} (goal {GOAL} at most)")


if __name__ == "__main__":
    main()
