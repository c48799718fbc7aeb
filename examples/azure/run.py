"""Meters a trace of real LLM requests and proves every total: converts, runs the flow, counts again.

python -m examples.azure.run                       # the made-up sample beside this file
python -m examples.azure.run PATH/TO/TRACE.csv     # such as the Azure LLM inference trace of 2023
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from examples.azure.check import Totals, counted, differences, stored
from examples.azure.convert import convert

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
METERS = ("requests", "tokens_in", "tokens_out")
TOP = 5
SHOWN = 10


def meter(events: Path, folder: Path) -> None:
    """Run the flow on `events`, with all it writes in `folder`."""
    settings = {
        "TIDEGATE_SOURCE": f"file:{events}",
        "TIDEGATE_CATALOG": str(HERE / "catalog.yaml"),
        "TIDEGATE_STORE": f"sqlite:{folder / 'totals.db'}",
        "TIDEGATE_ALERTS": f"file:{folder / 'alerts.ndjson'}",
        "TIDEGATE_DEAD_LETTERS": f"file:{folder / 'dead-letters.ndjson'}",
        "TIDEGATE_DATA_DIR": str(folder / "state"),
        "TIDEGATE_BRANCHES": "store,alerts",
    }
    # What the shell has set for another flow stays out of this one.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    subprocess.run(
        [sys.executable, "-m", "bytewax.run", "tidegate.flows.metering"],
        env={**kept, **settings, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        check=True,
    )


def table(totals: Totals) -> Table:
    """Usage per hour, and of the greatest customers, as it stands in the store."""
    hours: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys(METERS, 0))
    customers: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(METERS, 0))
    active: dict[int, set[str]] = defaultdict(set)
    for (customer, meter, window, start), total in totals.items():
        if window == "hour":
            hours[start][meter] += int(total)
            customers[customer][meter] += int(total)
            active[start].add(customer)
    shown = Table(title="Metered usage", show_footer=False)
    shown.add_column("hour (UTC) or customer")
    for column in ("customers", *METERS):
        shown.add_column(column, justify="right")
    for start in sorted(hours):
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=start)
        numbers = (f"{hours[start][meter]:,}" for meter in METERS)
        shown.add_row(f"{at:%Y-%m-%d %H:%M}", str(len(active[start])), *numbers)
    shown.add_section()
    greatest = sorted(customers, key=lambda name: -customers[name]["tokens_in"])
    for name in greatest[:TOP]:
        shown.add_row(name, "", *(f"{customers[name][meter]:,}" for meter in METERS))
    shown.add_section()
    sums = (sum(customer[meter] for customer in customers.values()) for meter in METERS)
    shown.add_row("all", str(len(customers)), *(f"{number:,}" for number in sums))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trace", type=Path, nargs="?", default=HERE / "sample.csv", metavar="CSV")
    parser.add_argument("--keep", type=Path, help="an empty or new folder for events, store and alerts")
    chosen = parser.parse_args()
    if chosen.keep and chosen.keep.exists() and any(chosen.keep.iterdir()):
        parser.error(f"--keep: {chosen.keep} is not empty; name another folder")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="tidegate-azure-") as temporary:
        folder = (chosen.keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        events = folder / "events.ndjson"
        count = convert(chosen.trace, events)
        started = time.monotonic()
        meter(events, folder)
        seconds = time.monotonic() - started
        got = stored(folder / "totals.db")
        alerts = len((folder / "alerts.ndjson").read_bytes().splitlines())
    right = counted(chosen.trace)
    wrong = differences(right, got)
    console.print(table(got))
    console.print(
        f"{count:,} requests metered in {seconds:.1f} s, start and stop included; {alerts:,} alerts."
    )
    if wrong:
        console.print(f"[red]{len(wrong):,} of {len(right):,} totals differ from DuckDB's count:[/]")
        console.print("\n".join(wrong[:SHOWN]), markup=False)
        sys.exit(1)
    console.print(f"[green]All {len(right):,} totals equal DuckDB's own count of the CSV.[/]")


if __name__ == "__main__":
    main()
