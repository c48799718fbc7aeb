"""`tidegate`: what the flow has written, the catalog, the service. Each command says what it changes, if anything."""

import json
import os
import sys
from contextlib import closing
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from tidegate.operators.model.errors import TidegateError
from tidegate.operators.model.ports import StoredTotal, StoreReader
from tidegate.serving.cli.commands import (
    ask,
    catalog,
    dead_letters,
    deliveries,
    kafka,
    keys,
    outbox,
    pull,
    reconcile,
    serve,
    statement,
    store,
    unmetered,
    watch,
)
from tidegate.serving.cli.output import AsJson, console, print_done, print_lines, table
from tidegate.serving.views.balance import law, summed, unbalanced
from tidegate.serving.views.formatting import grouped, instant, moment
from tidegate.settings.addresses.extras import missing
from tidegate.settings.addresses.stores import StoreAddress as StoreEnds
from tidegate.settings.catalog.file import load_catalog
from tidegate.settings.catalog.meter_history import check_meters
from tidegate.settings.problems import SettingsError
from tidegate.settings.settings import Settings, load_settings

app = typer.Typer(
    name="tidegate",
    help="Looks at what Tidegate's flow has metered.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
catalog_app = typer.Typer(help="The catalog of meters, plans and customers.", no_args_is_help=True)
app.add_typer(catalog_app, name="catalog")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(keys.app, name="keys")
app.add_typer(kafka.app, name="kafka")
app.command()(serve.serve)
app.command()(ask.check)
app.command()(ask.usage)
app.command()(unmetered.unmetered)
app.command()(watch.top)
app.command()(watch.alerts)
catalog_app.command()(catalog.apply)
catalog_app.command()(catalog.diff)
catalog_app.command()(catalog.history)
app.add_typer(store.app, name="store")
app.add_typer(deliveries.app, name="deliveries")
app.add_typer(outbox.app, name="outbox")

StoreAddress = Annotated[
    str | None,
    typer.Option("--store", metavar="ADDRESS", help="Such as sqlite:data/tidegate.db, else TIDEGATE_STORE."),
]


class Window(StrEnum):
    period = "period"
    day = "day"
    hour = "hour"


class NotFound(TidegateError):
    """What was asked for is not there; says what to do."""


@app.callback(invoke_without_command=True)
def tidegate(show: Annotated[bool, typer.Option("--version", help="Prints the version.")] = False) -> None:
    if show:
        print(f"tidegate {version('tidegate')}")
        raise typer.Exit


@app.command()
def totals(
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    window: Annotated[Window | None, typer.Option(help="Only windows of this kind.")] = None,
    as_json: AsJson = False,
    store: StoreAddress = None,
) -> None:
    """Totals per customer, meter and window, as they stand now."""
    with closing(_reader(store)) as reader:
        found = (one for one in reader.totals(customer) if window is None or one.total.window == window)
        if as_json:
            print_lines(_total_line(one) for one in found)
            return
        shown = table("customer", "meter", "window", "from (UTC)", "to (UTC)", "total>", "events>", "late>")
        for one in found:
            total = one.total
            times = moment(total.start), moment(total.end)
            # A correction is a late event too, to whoever looks at a table.
            counts = (grouped(total.total), f"{total.events:,}", f"{total.late + total.corrected:,}")
            shown.add_row(Text(total.customer), Text(total.meter), total.window, *times, *counts)
    if not shown.row_count:
        whose = f" of customer {customer!r}" if customer is not None else ""
        raise NotFound(f"totals: there are none{whose}{f' per {window}' if window else ''}")
    console().print(shown)


@app.command()
def counters(as_json: AsJson = False, store: StoreAddress = None) -> None:
    """How all events ended, and whether every one is accounted for; ends with 1 if not."""
    with closing(_reader(store)) as reader:
        sums = summed(reader.counters())
    wrong = unbalanced(sums)
    if as_json:
        print_lines([json.dumps({"counters": sums, "balanced": not wrong, "wrong": wrong}).encode()])
    else:
        shown = table("counter", "count>")
        for name, value in sums.items():
            shown.add_row(Text(name), f"{value:,}")
        screen = console()
        screen.print(shown)
        screen.print("\n".join(wrong) or f"Every event is accounted for: {law(sums)}.", highlight=False)
        if unread := sums.get("unmetered"):
            screen.print(
                f"No meter read {unread:,} of those accepted: `tidegate unmetered` says why.", highlight=False
            )
    if wrong:
        raise typer.Exit(1)


catalog_app.command()(pull.pull)
app.add_typer(reconcile.app, name="reconcile")
app.command()(statement.statement)


@catalog_app.command()
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    as_json: AsJson = False,
    store: StoreAddress = None,
) -> None:
    """Says whether a catalog can be used, or all that is wrong in it, line by line.

    It is held against what its meters have counted too, in the store that is named, else in a file that is there.
    """
    found = load_catalog(file)
    address = _store_at_hand(store)
    if address is not None:
        with closing(address.open_control()) as log:
            check_meters(log, log.catalog_number(), found, str(file))
    sizes = {"meters": found.meters, "plans": found.plans, "customers": found.customers}
    counts = {name: len(part) for name, part in sizes.items()}
    text = f"{file}: ok: {', '.join(f'{count:,} {name}' for name, count in counts.items())}"
    print_done(as_json, text, file=str(file), ok=True, **counts)


def main() -> None:
    """Run the command line; print an error in one line on standard error, and exit with 1."""
    try:
        app()
    except BrokenPipeError:
        # Whoever read has seen enough. Else Python tries to flush once more at its exit, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        words = missing(error)
        if words is None:
            raise
        sys.exit(f"tidegate: {words}")
    except (TidegateError, OSError) as error:
        sys.exit(str(error))


def _settings(**given: str | None) -> Settings:
    """Return the settings without a source, which readers do not need."""
    return load_settings(
        {"source": "file:-"} | {name: text for name, text in given.items() if text is not None}
    )


def _store_at_hand(store: str | None) -> StoreEnds | None:
    if store is not None:
        return _settings(store=store).store
    try:
        found = _settings().store
    except SettingsError:
        # A catalog can be looked at where nothing else is set up.
        return None
    return found if found.is_at_hand() else None


def _reader(store: str | None) -> StoreReader:
    reader: StoreReader = _settings(store=store).store.open_reader()
    return reader


def _total_line(stored: StoredTotal) -> bytes:
    total = stored.total
    line: dict[str, Any] = {
        "customer": total.customer,
        "meter": total.meter,
        "window": total.window,
        "start": instant(total.start),
        "end": instant(total.end),
        # Text, as many readers of JSON make a binary float of a number.
        "total": str(total.total),
        "events": total.events,
        "version": total.version,
        "late": total.late,
        "corrected": total.corrected,
        "adjustment": str(total.adjustment),
        "as_of": instant(total.as_of),
        "written_at": instant(stored.written_at),
    }
    return msgspec.json.encode(line)
