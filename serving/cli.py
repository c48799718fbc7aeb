"""`tidegate`: looks at what the flow has written. It reads stores and files, and changes nothing."""

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

from connectors.sqlite_keys import KeysError
from operators.ports import IngestError, StoredTotal, StoreError, StoreReader
from serving import deliveries, outbox
from serving.books import law, summed, unbalanced
from serving.commands import keys, serve, store
from serving.commands.output import AsJson, console, print_lines, table
from serving.wording import clipped, grouped, instant, moment
from settings.catalog import CatalogError, load_catalog
from settings.problems import SettingsError
from settings.settings import Settings, load_settings
from settings.sinks import DeadLetterFile

PAYLOAD_SHOWN = 60
DETAIL_SHOWN = 60

app = typer.Typer(
    name="tidegate",
    help="Looks at what Tidegate's flow has metered.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
catalog_app = typer.Typer(help="The catalog of meters, plans and customers.", no_args_is_help=True)
letters_app = typer.Typer(help="Events that were not metered.", no_args_is_help=True)
app.add_typer(catalog_app, name="catalog")
app.add_typer(letters_app, name="dead-letters")
app.add_typer(keys.app, name="keys")
app.command()(serve.serve)
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


class NotFound(Exception):
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
    if wrong:
        raise typer.Exit(1)


@catalog_app.command()
def validate(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Says whether a catalog can be used, or all that is wrong in it, line by line."""
    catalog = load_catalog(file)
    sizes = {"meters": catalog.meters, "plans": catalog.plans, "customers": catalog.customers}
    print(f"{file}: ok: {', '.join(f'{len(part):,} {name}' for name, part in sizes.items())}")


@letters_app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The dead letters of the file that TIDEGATE_DEAD_LETTERS names, oldest first."""
    address = _settings().dead_letters
    if not isinstance(address, DeadLetterFile):
        raise NotFound(f"dead letters: go to {address}, which keeps none; list those of a file: address")
    path = Path(address.path)
    if not path.exists():
        print(f"No dead letters: there is no file {path}, which begins with the first one.", file=sys.stderr)
        return
    with path.open("rb") as file:
        # A line without its end is still being written.
        lines = (line[:-1] for line in file if line.endswith(b"\n"))
        if as_json:
            print_lines(lines)
            return
        shown = table("received (UTC)", "reason", "detail", "payload")
        for number, line in enumerate(lines, 1):
            shown.add_row(*map(Text, _letter_row(path, number, line)))
    console().print(shown if shown.row_count else "No dead letters.")


def main() -> None:
    """The command line; what goes wrong is told in one line on standard error, and ends with 1."""
    try:
        app()
    except BrokenPipeError:
        # Whoever read has seen enough. Else Python tries to flush once more at its exit, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (SettingsError, CatalogError, StoreError, IngestError, KeysError, NotFound, OSError) as error:
        sys.exit(str(error))


def _settings(**given: str | None) -> Settings:
    """The settings without a source, which nobody needs who only reads."""
    return load_settings(
        {"source": "file:-"} | {name: text for name, text in given.items() if text is not None}
    )


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


def _letter_row(path: Path, number: int, line: bytes) -> tuple[str, str, str, str]:
    try:
        letter = msgspec.json.decode(line, type=dict[str, Any])
        payload = letter["payload"] if "payload" in letter else letter["payload_base64"]
        received = letter["received_at"][:19].replace("T", " ")
        shown = clipped(letter["detail"], DETAIL_SHOWN), clipped(payload, PAYLOAD_SHOWN)
        return received, letter["reason"], *shown
    except (msgspec.DecodeError, KeyError, TypeError):
        raise NotFound(
            f"{path}:{number}: needs a dead letter, got {line[:40]!r}; name the right file"
        ) from None


if __name__ == "__main__":
    main()
