"""`make demo`: a made-up AI product, metered by the real flow in a process of its own, and shown as it happens.

The flow is what a user runs, `python -m bytewax.run flows.metering`; the screen reads the store that it writes, as
any application would. On a terminal it is a page that changes; else a line a second. It ends with a summary.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from connectors.sqlite import SqliteReader
from operators.catalog import Catalog
from serving.books import law, unbalanced
from serving.standing import bill
from serving.terminal import Screen
from serving.usage import Usage
from serving.wording import age, grouped
from settings.catalog import load_catalog

ROOT = Path(__file__).resolve().parent.parent
CATALOG = ROOT / "examples" / "catalog.yaml"
FRAME_S = 0.25
LINE_S = 1.0
START_S = 60.0
STOP_S = 10.0
LOG_LINES = 15
PR_SET_PDEATHSIG = 1
SHOWN = 8


class DemoError(Exception):
    """The demo cannot go on; says why."""


class Flow:
    """The flow as a process, with everything that it writes in one folder. It dies with the demo, however that ends."""

    def __init__(self, folder: Path, rate: float, seed: int) -> None:
        self.folder = folder
        self.store = folder / "tidegate.db"
        self.alerts = folder / "alerts.ndjson"
        self.dead_letters = folder / "dead-letters.ndjson"
        self.log = folder / "flow.log"
        settings = {
            "TIDEGATE_SOURCE": f"demo:?rate={rate:g}&seed={seed}",
            "TIDEGATE_CATALOG": str(CATALOG),
            "TIDEGATE_STORE": f"sqlite:{self.store.name}",
            "TIDEGATE_ALERTS": f"file:{self.alerts.name}",
            "TIDEGATE_DEAD_LETTERS": f"file:{self.dead_letters.name}",
            "TIDEGATE_BILLING": "file:billing/",
            "TIDEGATE_BRANCHES": "store,alerts,billing",
            "TIDEGATE_DATA_DIR": ".",
            "PYTHONPATH": str(ROOT),
        }
        # What the shell has set for another flow stays out of this one; so do .env and tidegate.toml, by the folder.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TIDEGATE_", "BYTEWAX_"))
        }
        demo = os.getpid()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bytewax.run", "flows.metering"],
                cwd=folder,
                env=kept | settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the demo, which then stops the flow.
                start_new_session=True,
                preexec_fn=lambda: _die_with(demo),
            )

    def check(self) -> None:
        """DemoError if the flow has ended, with what it said last."""
        code = self._process.poll()
        if code is not None:
            said = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise DemoError(
                "\n".join([f"The flow ended by itself with {code}. Its last words, of {self.log}:", *said])
            )

    def stop(self) -> None:
        """Ends the process and waits for its end."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def demo(
    seconds: Annotated[float | None, typer.Option(envvar="DEMO_SECONDS", help="Ends so long after the start.")] = None,
    keep: Annotated[
        bool, typer.Option(envvar="DEMO_KEEP", help="Goes on where the last demo ended.")
    ] = False,
    rate: Annotated[float, typer.Option(envvar="DEMO_RATE", min=1, help="Events a second.")] = 200,
    seed: Annotated[int, typer.Option(envvar="DEMO_SEED", min=0, help="Another seed, other usage.")] = 1,
    folder: Annotated[Path, typer.Option(envvar="DEMO_FOLDER", help="For all that it writes.")] = Path(
        "data/demo"
    ),
) -> None:
    """Meters a made-up AI product, live, until Ctrl-C."""
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: over.set())
    console = Console()
    catalog = load_catalog(CATALOG)
    with _own(folder, keep):
        flow = Flow(folder.absolute(), rate, seed)
        try:
            if not _wait_for_store(flow, over):
                return
            usage = Usage(SqliteReader(flow.store), flow.alerts, flow.dead_letters)
            with closing(usage.reader):
                screen = Screen(catalog, usage, f"Ctrl-C ends it. All it writes is in {folder}")
                watch = _show if console.is_terminal else _tell
                watch(console, flow, usage, screen, over, seconds)
                flow.stop()
                _refresh(usage, screen)
                _sum_up(console, catalog, usage, screen, folder)
        finally:
            flow.stop()


def main() -> None:
    try:
        typer.run(demo)
    except DemoError as error:
        sys.exit(str(error))


def _show(
    console: Console, flow: Flow, usage: Usage, screen: Screen, over: threading.Event, seconds: float | None
) -> None:
    """A page that changes, until it is over."""
    began = time.monotonic()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for _ in _frames(flow, over, FRAME_S, seconds):
            now = _refresh(usage, screen)
            running = int((time.monotonic() - began) * 1e6)
            live.update(screen.page(now, running, console.width, console.height), refresh=True)


def _tell(
    console: Console, flow: Flow, usage: Usage, screen: Screen, over: threading.Event, seconds: float | None
) -> None:
    """A line a second, until it is over."""
    began = time.monotonic()
    for _ in _frames(flow, over, LINE_S, seconds):
        now = _refresh(usage, screen)
        sums = usage.sums
        parts = (
            f"{time.monotonic() - began:5.0f} s",
            f"{sums['events']:,} events",
            f"{usage.rate():,.0f}/s",
            f"newest {age(now - usage.as_of)} old" if usage.as_of else "nothing yet",
            f"{sums['duplicates']:,} duplicates",
            f"{sums['rejects']:,} rejects",
            f"{usage.alert_kinds.total():,} alerts",
            f"{len(screen.denials()):,} denials",
        )
        print(", ".join(parts), flush=True)


def _frames(flow: Flow, over: threading.Event, every: float, seconds: float | None) -> Iterator[None]:
    """A beat each `every` seconds until it is over; at once DemoError if the flow has ended."""
    end = None if seconds is None else time.monotonic() + seconds
    while not over.is_set() and (end is None or time.monotonic() < end):
        flow.check()
        yield
        over.wait(every if end is None else max(0.0, min(every, end - time.monotonic())))


def _refresh(usage: Usage, screen: Screen) -> int:
    usage.refresh(time.time_ns() // 1000)
    # The clock again: reading took time, in which events came.
    now = time.time_ns() // 1000
    screen.look(now)
    return now


def _wait_for_store(flow: Flow, over: threading.Event) -> bool:
    """Whether the flow came up; False where the demo was ended before."""
    deadline = time.monotonic() + START_S
    while not flow.store.exists():
        flow.check()
        if time.monotonic() > deadline:
            raise DemoError(f"The flow made no store within {START_S:.0f} s; see {flow.log}")
        if over.wait(0.05):
            return False
    return True


def _sum_up(console: Console, catalog: Catalog, usage: Usage, screen: Screen, folder: Path) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("customer")
    table.add_column("plan")
    for column in ("tokens in", "tokens out", "calls", "bill"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("denied now")
    total = usage.total
    for customer in sorted(usage.totals, key=lambda name: -total(name, "tokens_in"))[:SHOWN]:
        numbers = [grouped(str(total(customer, meter))) for meter in ("tokens_in", "tokens_out", "calls")]
        denied = ", ".join(sorted(meter for name, meter in screen.denials() if name == customer))
        owed = f"{bill(catalog, customer, total):,.2f}"
        table.add_row(customer, catalog.plan_of(customer).name, *numbers, owed, denied or "–")
    console.print(table)
    kinds = ", ".join(
        f"{count:,} {kind.replace('_', ' ')}" for kind, count in usage.alert_kinds.most_common()
    )
    wrong = unbalanced(usage.sums)
    command = "tidegate" if shutil.which("tidegate") else ".venv/bin/tidegate"
    store = f"--store sqlite:{folder / 'tidegate.db'}"
    first = max(usage.totals, key=lambda name: total(name, "tokens_in"), default="cus_001")
    for line in (
        f"Every event is accounted for: {law(usage.sums)}." if not wrong else "\n".join(wrong),
        f"Alerts: {kinds or 'none'}. Denied now: {len({name for name, _ in screen.denials()}):,} customers.",
        "",
        "Look further:",
        f"  {command} totals {store} --customer {first}",
        f"  {command} counters {store}",
        f"  TIDEGATE_DEAD_LETTERS=file:{folder / 'dead-letters.ndjson'} {command} dead-letters list",
        "  DEMO_KEEP=1 make demo    goes on from here",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _own(folder: Path, keep: bool) -> Iterator[None]:
    """The folder for this demo alone, empty unless it is to be kept. DemoError if another demo has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(
                f"Another demo runs in {folder}; end it, or name another folder: DEMO_FOLDER=…"
            ) from None
        if not keep and folder.exists():
            if any(folder.iterdir()) and not (folder / "flow.log").exists():
                raise DemoError(
                    f"{folder} is not empty and not of a demo; name another folder: DEMO_FOLDER=…"
                )
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        yield


def _die_with(parent: int) -> None:
    """Has this process killed when its parent dies, however it dies. On Linux; elsewhere only a clean end stops it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    main()
