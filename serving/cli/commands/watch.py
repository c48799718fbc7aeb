"""`tidegate top` and `tidegate alerts`: all customers at a glance, live, and what was told of them."""

import time
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from tidegate.connectors.clock import wall_clock
from tidegate.serving.cli.commands.ask import StoreAddress, alert_line
from tidegate.serving.cli.keyboard import is_quit_within, keys_at_once
from tidegate.serving.cli.output import AsJson, console, print_lines, print_table, table
from tidegate.serving.http.readers.overview_cache import Board
from tidegate.serving.http.schemas import OverviewBody, Standing
from tidegate.serving.http.serialization import bodies
from tidegate.serving.views.formatting import brief, grouped
from tidegate.settings.catalog.versions import CatalogFollower
from tidegate.settings.serving import load_serving_settings
from tidegate.settings.settings import load_settings

ROWS = 15
COLOURS = {"denied": "red", "grace": "red", "over": "yellow", "overage": "magenta", "noted": "yellow"}


def top(
    once: Annotated[bool, typer.Option("--once", help="Prints it once, and ends.")] = False,
    every: Annotated[
        float, typer.Option(min=0.1, max=60, metavar="SECONDS", help="How often it is drawn.")
    ] = 1.0,
    as_json: AsJson = False,
    store: StoreAddress = None,
) -> None:
    """Who sends most, who is near a limit, and how fast: live, until `q` or Ctrl-C."""
    settings = load_serving_settings({} if store is None else {"store": store})
    settings.store.require()
    board = Board(settings, wall_clock)
    with closing(settings.store.open_control()) as log, closing(settings.store.open_reader()) as reader:
        catalogs = CatalogFollower(log)

        def look() -> OverviewBody:
            return board.refresh(reader, catalogs.follow())

        if as_json:
            _print_for_ever(look, every, once)
        elif once:
            console().print(page(look()))
        else:
            _draw_for_ever(look, every)


def alerts(
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many, the newest.")] = 50,
    as_json: AsJson = False,
    store: StoreAddress = None,
) -> None:
    """Show the alerts about customers, the newest first."""
    given = {"source": "file:-"} | ({"store": store} if store is not None else {})
    with closing(load_settings(given).store.open_reader()) as reader:
        found = bodies(reader.notes("alert", customer, limit))
    if as_json:
        print_lines(map(msgspec.json.encode, found))
        return
    rows = [_row(alert) for alert in found]
    print_table(("at (UTC)", "customer", "meter", "kind", "level", "state", "total>"), rows, "No alerts.")


def page(body: OverviewBody) -> RenderableType:
    """Return the overview for a terminal."""
    lag = "" if body.lag is None else f"   lag {body.lag:.1f} s"
    books = "" if body.balanced else "   BOOKS DO NOT BALANCE"
    head = f"{body.now[:19].replace('T', ' ')}   {body.customers:,} customers   {body.events_per_second:,.0f} events/s"
    parts: list[RenderableType] = [Text(f"{head}{lag}{books}", style="bold")]
    if body.flow.state != "live":
        parts.append(Text(f"Usage is not being counted: {body.flow.detail}", style="bold red"))
    parts += [
        _standings("near a limit", body.near),
        _standings("busiest", body.top),
    ]
    parts += [Text(alert_line(alert)) for alert in body.alerts[:5]]
    return Group(*parts)


def _standings(title: str, rows: list[Standing]) -> RenderableType:
    shown = table(title, "plan", "meter", "used>", "share>", "status", "events/s>", "bill>")
    for row in rows[:ROWS]:
        share = f"{row.share} %" if row.share is not None else ""
        used = brief(Decimal(row.total))
        state = Text(row.standing, style=COLOURS.get(row.level, ""))
        names = Text(row.customer), Text(row.plan), Text(row.meter)
        shown.add_row(*names, used, share, state, f"{row.events_per_second:,.1f}", grouped(row.bill))
    return shown


def _row(alert: dict[str, Any]) -> tuple[str, ...]:
    names = ("customer", "meter", "kind", "level", "state", "total")
    return str(alert.get("at", ""))[:19].replace("T", " "), *(str(alert.get(name, "")) for name in names)


def _print_for_ever(look: Callable[[], OverviewBody], every: float, once: bool) -> None:
    while True:
        print_lines([msgspec.json.encode(look())])
        if once:
            return
        time.sleep(every)


def _draw_for_ever(look: Callable[[], OverviewBody], every: float) -> None:
    with Live(page(look()), console=console(), screen=True, auto_refresh=False) as live:
        try:
            with keys_at_once():
                while not is_quit_within(every):
                    live.update(page(look()), refresh=True)
        except KeyboardInterrupt:
            return
