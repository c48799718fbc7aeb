"""Does it matter to caps and totals whether the biller answers? From append to visible, with and without it.

    python -m benchmarks.outage [--seconds 20] [--rate 2000] [--rounds 3]

The same flow bills to the platform's simulator, which answers in one run and refuses in the next, turn by turn on the
same machine. The ratio of the medians is the answer; the goal is 1.1 at most. A flow without billing is run as well,
which tells what billing costs at all.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import mkdtemp

from benchmarks import latency
from benchmarks.generate import CATALOG_YAML
from benchmarks.latency import CUSTOMERS
from serving.simulator.client import Simulator

GOAL = 1.1
WAYS = ("no billing", "healthy", "outage")


def simulated() -> "tuple[subprocess.Popen[str], Simulator]":
    """A platform in a process of its own."""
    command = [sys.executable, "-m", "serving.simulator", "--port", "0", "--seed", "1", "--key", "sim_key"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, Simulator(process.stdout.readline().strip(), "sim_key")


def run(way: str, simulator: Simulator, directory: Path, seconds: float, rate: int) -> float:
    """The median from append to visible, in ms."""
    simulator.reset(1)
    simulator.tier("1")
    simulator.switch(unknown_customer="accept_unattributed")
    if way == "outage":
        simulator.fault("error", status=503, times=None)
    billing = {
        "billing": f"dodo:{simulator.url.removeprefix('http:')}?tls=false&tier=1",
        "branches": "store,alerts,billing",
        "dodo_api_key": simulator.key,
    }
    names = (f"  cust-{number:06d}: {{plan: standard, billing_id: cus_{number}}}\n" for number in range(CUSTOMERS + 1))
    catalog = CATALOG_YAML.replace("customers: {}\n", f"customers:\n{''.join(names)}")
    seen = latency.measure(directory, "10s", seconds, rate, catalog, **({} if way == "no billing" else billing))
    billed = sum(request["stored"] for request in simulator.requests())
    print(f"{way:10}  p50 {seen.p50_ms:7.2f} ms  p99 {seen.p99_ms:7.2f} ms  billed {billed:,}", flush=True)
    return seen.p50_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=int, default=2000, help="events per second")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    process, simulator = simulated()
    scratch = Path(mkdtemp(prefix="tidegate-outage-"))
    medians: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        for number in range(chosen.rounds):
            for way in WAYS:
                folder = scratch / f"{way.replace(' ', '-')}-{number}"
                medians[way].append(run(way, simulator, folder, chosen.seconds, chosen.rate))
                shutil.rmtree(folder)
    finally:
        simulator.close()
        process.terminate()
        process.wait()
        shutil.rmtree(scratch)
    plain, healthy, outage = (median(medians[way]) for way in WAYS)
    print(f"outage / healthy {outage / healthy:.2f} (goal {GOAL} at most); healthy / no billing {healthy / plain:.2f}")


if __name__ == "__main__":
    main()
