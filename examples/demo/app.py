"""The demo: a made-up product asks the gate and reports usage over HTTP; the flow meters and bills it to a simulator.

The processes are what a user runs: `tidegate serve` with the dashboard, `python -m bytewax.run
tidegate.flows.metering`, the billing provider's simulator, and the product. The screen reads the store, as any
application would. On a terminal it is a page that changes; else a line a second. At the end every invoice figure is
compared with the store's.
"""

import fcntl
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from examples.demo.children import ROOT, Child, DemoError
from examples.demo.invoice import KEY, BillingProvider, Figure, mapped_catalog, settle
from examples.demo.terminal import Screen
from tidegate.connectors.sqlite.store import SqliteReader
from tidegate.operators.model.catalog import Catalog
from tidegate.serving.views.balance import law, unbalanced
from tidegate.serving.views.formatting import age, grouped
from tidegate.serving.views.usage import Usage
from tidegate.settings.catalog.file import parse_catalog

CATALOG = ROOT / "examples" / "catalog.yaml"
PORT = 8080
CUSTOMERS = 40
FRAME_S = 0.25
LINE_S = 1.0
START_S = 60.0
SETTLE_S = 30.0
SHOWN = 8
INVOICE_METERS = ("tokens_in", "calls", "gpu_seconds")

T = TypeVar("T")


class Stage:
    """All processes of the demo, with everything that they write in one folder."""

    def __init__(self, folder: Path, rate: float, seed: int, port: int) -> None:
        self.folder = folder
        self._port = port
        self.store = folder / "tidegate.db"
        self.alerts = folder / "alerts.ndjson"
        self.dead_letters = folder / "dead-letters.ndjson"
        self.outbox = folder / "outbox.db"
        self._counts = folder / "product.json"
        customers = [f"cus_{number:03d}" for number in range(1, CUSTOMERS + 1)]
        text = mapped_catalog(CATALOG.read_text(), customers)
        (folder / "catalog.yaml").write_text(text)
        self.catalog = parse_catalog(text)
        self._traffic = (f"{rate:g}", str(seed), str(CUSTOMERS))
        self._children: list[Child] = []
        self.address = ""
        self.began = time.time_ns() // 1000

    def start(self, over: threading.Event) -> bool:
        """Start one after the other, each when what it needs is there; False where the demo was ended before."""
        simulator = self._child("simulator", "simulator", "--port", "0", "--database", "simulator.db")
        url = self._waited(over, lambda: _address(simulator.said()))
        if not url:
            return False
        self.provider = BillingProvider(url, self.catalog, self.folder / "biller.json")
        self.provider.set_up(self.began)
        port, metrics = _free_port(self._port), _free_port(0)
        settings = {
            "TIDEGATE_CATALOG": "catalog.yaml",
            "TIDEGATE_STORE": f"sqlite:{self.store.name}",
            "TIDEGATE_DATA_DIR": ".",
            "TIDEGATE_SOURCE": "log:ingest/",
            "TIDEGATE_INGEST": "log:ingest/",
            "TIDEGATE_CLOCK": "wall",
            "TIDEGATE_ALERTS": f"file:{self.alerts.name}",
            "TIDEGATE_DEAD_LETTERS": f"file:{self.dead_letters.name}",
            "TIDEGATE_BRANCHES": "store,alerts,billing",
            "TIDEGATE_BILLING": f"dodo://{url.removeprefix('http://')}?tls=false&tier=1",
            "TIDEGATE_DODO_API_KEY": KEY,
            "TIDEGATE_METRICS": f"127.0.0.1:{metrics}",
        }
        self._child("flow", "bytewax.run", "tidegate.flows.metering", settings=settings)
        if not self._waited(over, self.store.exists):
            return False
        self.address = f"http://127.0.0.1:{port}"
        listen = {"TIDEGATE_LISTEN": f"127.0.0.1:{port}", "TIDEGATE_AUTH": "none"}
        self._child("service", "tidegate", "serve", settings=settings | listen)
        if not self._waited(over, lambda: _answers(port)):
            return False
        arguments = (self.address, "catalog.yaml", self._counts.name, *self._traffic)
        self._product = self._child("product", "examples.demo.product", *arguments)
        return True

    def check(self) -> None:
        """DemoError if a process has ended."""
        for child in self._children:
            child.check()

    @property
    def refused(self) -> int:
        """How many requests the gate has refused."""
        with suppress(OSError, msgspec.DecodeError):
            return int(msgspec.json.decode(self._counts.read_bytes()).get("refused", 0))
        return 0

    def finish(self, usage: Usage) -> tuple[str, list[Figure]]:
        """End the product, wait until all its usage is metered and billed, and fetch the invoices' figures."""
        self._children.remove(self._product)
        self._product.stop()
        deadline = time.monotonic() + SETTLE_S
        seen = -1
        # Counters are written every second, so looks that agree are further apart.
        while seen != (events := _refreshed(usage)) and time.monotonic() < deadline:
            seen = events
            time.sleep(1.3)
        left = settle(self.outbox, usage.sums["accepted"], SETTLE_S)
        return left, self.provider.figures(self.store, self.began)

    def stop(self) -> None:
        """End every process, the last one started first."""
        for child in reversed(self._children):
            child.stop()
        self._children.clear()

    def _child(self, name: str, *command: str, settings: dict[str, str] | None = None) -> Child:
        child = Child(name, self.folder, *command, settings=settings)
        self._children.append(child)
        return child

    def _waited(self, over: threading.Event, what: Callable[[], T]) -> T | None:
        """Wait until `what` returns something, and return it; None if the demo was ended before."""
        deadline = time.monotonic() + START_S
        while not (found := what()):
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(
                    f"The demo did not start within {START_S:.0f} s; see the logs in {self.folder}"
                )
            if over.wait(0.05):
                return None
        return found


def demo(
    seconds: Annotated[
        float | None, typer.Option(envvar="DEMO_SECONDS", help="Ends so long after the first usage was seen.")
    ] = None,
    keep: Annotated[
        bool, typer.Option(envvar="DEMO_KEEP", help="Goes on where the last demo ended.")
    ] = False,
    rate: Annotated[float, typer.Option(envvar="DEMO_RATE", min=1, help="Events a second.")] = 200,
    seed: Annotated[int, typer.Option(envvar="DEMO_SEED", min=0, help="Another seed, other usage.")] = 1,
    port: Annotated[
        int,
        typer.Option(envvar="DEMO_PORT", min=0, max=65535, help="Of the dashboard; another if it is taken."),
    ] = PORT,
    folder: Annotated[Path, typer.Option(envvar="DEMO_FOLDER", help="For all that it writes.")] = Path(
        "data/demo"
    ),
) -> None:
    """Meters a made-up AI product, live, until Ctrl-C."""
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: over.set())
    console = Console()
    with _own(folder, keep), ExitStack() as stack:
        stage = Stage(folder.absolute(), rate, seed, port)
        stack.callback(stage.stop)
        if not stage.start(over):
            return
        usage = Usage(SqliteReader(stage.store), stage.alerts, stage.dead_letters)
        stack.enter_context(closing(usage.reader))
        footer = f"Dashboard: {stage.address}    Ctrl-C ends it. All it writes is in {folder}"
        screen = Screen(stage.catalog, usage, footer)
        if not console.is_terminal:
            print(f"Dashboard: {stage.address}", flush=True)
        watch = _show if console.is_terminal else _tell
        watch(console, stage, usage, screen, over, seconds)
        left, figures = stage.finish(usage)
        _refresh(usage, screen)
        stage.stop()
        _sum_up(console, stage.catalog, usage, screen, folder)
        _compare(console, figures, left, stage.refused)


def main() -> None:
    try:
        typer.run(demo)
    except DemoError as error:
        sys.exit(str(error))


def _show(
    console: Console, stage: Stage, usage: Usage, screen: Screen, over: threading.Event, seconds: float | None
) -> None:
    """Draw a page that changes, until it is over."""
    began = time.monotonic()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for _ in _frames(stage, usage, over, FRAME_S, seconds):
            now = _refresh(usage, screen)
            screen.refused = stage.refused
            running = int((time.monotonic() - began) * 1e6)
            live.update(screen.page(now, running, console.width, console.height), refresh=True)


def _tell(
    console: Console, stage: Stage, usage: Usage, screen: Screen, over: threading.Event, seconds: float | None
) -> None:
    """Print a line a second, until it is over."""
    began = time.monotonic()
    for _ in _frames(stage, usage, over, LINE_S, seconds):
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
            f"{stage.refused:,} requests refused",
        )
        print(", ".join(parts), flush=True)


def _frames(
    stage: Stage, usage: Usage, over: threading.Event, every: float, seconds: float | None
) -> Iterator[None]:
    """Beat each `every` seconds, until it is over or `seconds` after usage was first seen, for which it waits START_S.

    Raises DemoError at once if a process has ended.
    """
    end = float("inf") if seconds is None else time.monotonic() + START_S + seconds
    seen = False
    while not over.is_set() and time.monotonic() < end:
        stage.check()
        yield
        if seconds is not None and usage.as_of and not seen:
            seen, end = True, min(end, time.monotonic() + seconds)
        over.wait(max(0.0, min(every, end - time.monotonic())))


def _refresh(usage: Usage, screen: Screen) -> int:
    usage.refresh(time.time_ns() // 1000)
    # The clock again: reading took time, in which events came.
    now = time.time_ns() // 1000
    screen.look(now)
    return now


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
        owed = f"{screen.owed(customer):,.2f}"
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


def _compare(console: Console, figures: list[Figure], left: str, refused: int) -> None:
    """Return the invoices' figures beside the store's."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("invoice of")
    for meter in INVOICE_METERS:
        table.add_column(meter.replace("_", " "), justify="right", no_wrap=True)
        table.add_column("billed", justify="right", no_wrap=True)
    by_customer: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        by_customer.setdefault(figure.customer, {})[figure.meter] = figure
    first = INVOICE_METERS[0]
    for customer in sorted(by_customer, key=lambda name: -by_customer[name][first].ours)[:SHOWN]:
        cells = []
        for meter in INVOICE_METERS:
            figure = by_customer[customer][meter]
            colour = "green" if figure.ours == figure.theirs else "red"
            cells += [grouped(f"{figure.ours:f}"), f"[{colour}]{grouped(f'{figure.theirs:f}')}[/]"]
        table.add_row(customer, *cells)
    console.print(table)
    equal = sum(figure.ours == figure.theirs for figure in figures)
    said = f"{equal:,} of {len(figures):,} invoice figures equal the store's totals; of usage, {left}."
    console.print(said, highlight=False, soft_wrap=True)
    console.print(f"{refused:,} requests were refused at a cap.", highlight=False, soft_wrap=True)


@contextmanager
def _own(folder: Path, keep: bool) -> Iterator[None]:
    """Return the folder for this demo alone, empty unless it is to be kept. DemoError if another demo has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(
                f"Another demo runs in {folder}; end it, or name another folder: DEMO_FOLDER=…"
            ) from None
        if not keep and folder.exists():
            if any(folder.iterdir()) and not (folder / "simulator.log").exists():
                raise DemoError(
                    f"{folder} is not empty and not of a demo; name another folder: DEMO_FOLDER=…"
                )
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        yield


def _refreshed(usage: Usage) -> int:
    """How many events are counted by now."""
    usage.refresh(time.time_ns() // 1000)
    return usage.sums["events"]


def _address(said: str) -> str:
    found = re.search(r"http://\S+", said)
    return found[0] if found else ""


def _free_port(usual: int) -> int:
    """Return the usual port, or another where somebody has it."""
    for port in (usual, 0):
        with socket.socket() as free, suppress(OSError):
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))
            return int(free.getsockname()[1])
    raise DemoError("There is no free port on 127.0.0.1")


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
