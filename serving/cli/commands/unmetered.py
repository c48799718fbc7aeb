"""`tidegate unmetered`: what was accepted and not metered, and why not."""

from contextlib import closing
from typing import Annotated

import msgspec
import typer

from tidegate.serving.cli.commands.ask import StoreAddress
from tidegate.serving.cli.output import AsJson, console, print_lines, print_table
from tidegate.serving.http.readers.unmetered import read_unmetered
from tidegate.serving.http.schemas import UnmeteredBody
from tidegate.serving.views.balance import summed
from tidegate.serving.views.formatting import clipped
from tidegate.settings.settings import load_settings

SHOWN_MAX = 500
WIDTH = 60


def unmetered(
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    as_json: AsJson = False,
    store: StoreAddress = None,
) -> None:
    """Show accepted events that no meter read, or not all meters of their name, by cause, with a sample."""
    given = {"source": "file:-"} | ({"store": store} if store is not None else {})
    with closing(load_settings(given).store.open_reader()) as reader:
        causes = read_unmetered(reader, customer, SHOWN_MAX)
        sums = summed(reader.counters())
    if as_json:
        print_lines(map(msgspec.json.encode, causes))
        return
    rows = [_row(cause) for cause in causes]
    columns = ("events>", "event name", "why", "last (UTC)", "customer", "event")
    print_table(columns, rows, "Every accepted event was read by all meters of its name.")
    if customer is None and "accepted" in sums:
        whole = sums.get("unmetered", 0)
        console().print(f"{whole:,} of {sums['accepted']:,} accepted events were not metered.")


def _row(cause: UnmeteredBody) -> tuple[str, ...]:
    why = f"{cause.text} (other meters read it)" if cause.partly else cause.text
    at = cause.last_at[:19].replace("T", " ")
    name, customer, id = (clipped(text, WIDTH) for text in (cause.event_name, cause.customer, cause.event_id))
    return f"{cause.events:,}", name, why, at, customer, id
