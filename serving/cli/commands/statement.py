"""`tidegate statement`: what customers are billed for usage, by invoice, down to the events behind a line."""

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import msgspec
import typer
from rich.text import Text

from tidegate.connectors.outbox.billing_records import BillingRecords
from tidegate.connectors.reconciliation.book_reader import BookReader
from tidegate.connectors.reconciliation.book_schema import BookError
from tidegate.connectors.reconciliation.statement_store import read_statement
from tidegate.operators.billing.coverage import format_money
from tidegate.operators.billing.drift import OwnEvent, Span
from tidegate.operators.billing.provider import MatchedMeter, to_micros
from tidegate.operators.billing.statement import StatementLine
from tidegate.operators.columns.quantity import format_quantity
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.wire import format_instant
from tidegate.serving.cli.output import AsJson, Failed, console, print_lines, table
from tidegate.serving.views.formatting import grouped
from tidegate.settings.addresses.sinks import Dodo
from tidegate.settings.catalog.file import load_catalog, parse_catalog
from tidegate.settings.reconciliation import ReconciliationSettings, load_reconciliation_settings

COLUMNS = (
    "customer", "invoice", "payment", "payment_status", "meter", "period_start", "period_end", "units", "free", "price",
    "currency", "amount", "ours", "in_flight", "held_back", "unbilled", "cause", "repaired", "subscription", "product",
    "as_of",
)  # fmt: skip
EVENT_COLUMNS = ("invoice", "customer", "meter", "event", "id", "at", "units", "state", "reason", "finding")
# A cell that begins so would be a formula to a spreadsheet.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Event(NamedTuple):
    """An event behind a line: `event` is the sender's id, `finding` the cause of drift that names it, if one does."""

    line: StatementLine
    event: str
    own: OwnEvent
    finding: str


class Form(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


AsCsv = Annotated[bool, typer.Option("--csv", help="For a spreadsheet, amounts in whole currency.")]
Of = Annotated[
    str | None, typer.Option("--event", metavar="ID", help="Only the lines that this event is in.")
]


def statement(
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    invoice: Annotated[str | None, typer.Option(help="Only of this invoice or payment, by its id.")] = None,
    meter: Annotated[str | None, typer.Option(help="Only this meter's lines.")] = None,
    events: Annotated[bool, typer.Option("--events", help="The events behind each line.")] = False,
    event: Of = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
) -> None:
    """Show what is billed for usage: units, free, price, amount, payment; repaired, held back and not billed."""
    settings = load_reconciliation_settings()
    found = [
        line for line in read_statement(settings.folder, customer, invoice) if meter in (None, line.meter)
    ]
    form = Form.csv if as_csv else Form.json if as_json else Form.table
    if not events and event is None:
        _show_lines(found, form)
        return
    if customer is None and invoice is None and event is None:
        raise Failed("statement: needs --customer or --invoice to list events")
    behind = (one for one in _behind(settings, found) if event in (None, one.event, one.own.id))
    if event is None:
        _show_events(behind, form)
        return
    lines = {one.line.key: one.line for one in behind}
    _show_lines(list(lines.values()), form)


def _show_lines(lines: Sequence[StatementLine], form: Form) -> None:
    if form is Form.json:
        print_lines(map(msgspec.json.encode, lines))
        return
    if form is Form.csv:
        _print_csv(COLUMNS, ([_cell(line, name) for name in COLUMNS] for line in lines))
        return
    shown = table(
        "customer", "invoice", "payment", "meter", "period (UTC)", "units>", "free>", "price>", "amount>", "ours>",
        "held back>", "unbilled>", "repaired",
    )  # fmt: skip
    for line in lines:
        period = f"{line.period_start[:16]} – {line.period_end[:16]}".replace("T", " ")
        paid = line.invoice or ("not billed" if not line.subscription else "open")
        why = f" ({line.cause})" if line.cause else ""
        shown.add_row(
            *map(
                Text,
                (
                    line.customer, paid, line.payment, line.meter, period, grouped(line.units), grouped(line.free),
                    line.price or "", _amount(line, spaced=True), grouped(line.ours), grouped(line.held_back),
                    f"{grouped(line.unbilled)}{why}", _repairs(line),
                ),
            )
        )  # fmt: skip
    if not lines:
        console().print("There are no such lines.")
        return
    console().print(shown)
    console().print(f"Sum: {_sums(lines)}")


def _sums(lines: Sequence[StatementLine]) -> str:
    """Return what lines come to, by currency."""
    sums: dict[str, int] = {}
    for line in lines:
        if line.currency:
            sums[line.currency] = sums.get(line.currency, 0) + (line.amount or 0)
    return (
        ", ".join(format_money(Decimal(amount), currency) for currency, amount in sorted(sums.items()))
        or "no price"
    )


def _show_events(found: Iterator[Event], form: Form) -> None:
    rows = (
        {
            "invoice": one.line.invoice,
            "customer": one.line.customer,
            "meter": one.line.meter,
            "event": one.event,
            "id": one.own.id,
            "at": format_instant(one.own.at),
            "units": format_quantity(one.own.quantity or 0),
            "state": one.own.fate,
            "reason": one.own.reason,
            "finding": one.finding,
        }
        for one in found
    )
    if form is Form.json:
        print_lines(map(msgspec.json.encode, rows))
    elif form is Form.csv:
        _print_csv(EVENT_COLUMNS, ([_plain(row[name]) for name in EVENT_COLUMNS] for row in rows))
    else:
        shown = table(*(f"{name}>" if name == "units" else name for name in EVENT_COLUMNS))
        for row in rows:
            shown.add_row(*(Text(row[name]) for name in EVENT_COLUMNS))
        console().print(
            shown if shown.row_count else "The billing records have no events; the ledger may not reach back."
        )


def _behind(settings: ReconciliationSettings, lines: Sequence[StatementLine]) -> Iterator[Event]:
    """Yield the events of the billing records that each line's meter reads, by time."""
    if not isinstance(settings.billing, Dodo):
        raise Failed(f"TIDEGATE_BILLING: needs dodo: to read its billing records, got {settings.billing}")
    meters = {meter.name: meter for meter in _catalog(settings).meters}
    causes = _causes(settings)
    with closing(BillingRecords(settings.billing.outbox_path(settings.data_dir))) as records:
        for line in lines:
            if (meter := meters.get(line.meter)) is None:
                continue
            span = Span(_micros(line.period_start), _micros(line.period_end))
            own, _ = records.events(line.customer, MatchedMeter("", meter, meter, meter.kind, 0), span)
            inside = [one for one in own if one.quantity is not None and one.provider_at in span]
            names = {
                one.id: _name(one.payload)
                for one in records.bodies(line.customer, (o.id for o in inside), span)
            }
            for one in sorted(inside, key=lambda one: (one.at, one.id)):
                yield Event(line, names.get(one.id, ""), one, causes.get((line.customer, one.id), ""))


def _causes(settings: ReconciliationSettings) -> dict[tuple[str, str], str]:
    """Return the causes of what is off now, by customer and event; of each finding as many events as it names."""
    try:
        with closing(BookReader(settings.folder)) as book:
            found = [msgspec.json.decode(one.findings, type=dict[str, Any]) for one in book.open()]
    except BookError:
        # The statement outlives a lost book.
        return {}
    return {
        (one["customer"], id): finding["cause"]
        for one in found
        for finding in one.get("findings", ())
        for id in finding["ids"]
    }


def _catalog(settings: ReconciliationSettings) -> Catalog:
    with closing(settings.store.require().open_control()) as control:
        newest = control.catalog()
    return parse_catalog(newest.text) if newest is not None else load_catalog(settings.catalog)


def _name(body: bytes) -> str:
    """Return the id that the sender gave an event."""
    found: dict[str, Any] = msgspec.json.decode(body)
    return str(found.get("event_id") or found.get("id") or "")


def _cell(line: StatementLine, name: str) -> str:
    if name == "amount":
        return _amount(line)
    if name == "repaired":
        return _plain(_repairs(line))
    value = getattr(line, name)
    return "" if value is None else _plain(str(value))


def _amount(line: StatementLine, *, spaced: bool = False) -> str:
    """Return the amount in whole currency, as people and spreadsheets expect it."""
    if line.amount is None:
        return ""
    written = format_money(Decimal(line.amount), line.currency)
    return written if spaced else written.rpartition(" ")[0].replace(",", "")


def _repairs(line: StatementLine) -> str:
    """Return what was done about the line's total: act, units where it names them, events, and the outcome."""
    return "; ".join(
        f"{one.act}{'' if one.quantity == '0' else f' {one.quantity}'} ({one.events} events): {one.state}"
        for one in line.repaired
    )


def _plain(value: str) -> str:
    is_number = value.removeprefix("-").replace(".", "", 1).isdigit()
    return f"'{value}" if value.startswith(FORMULA) and not is_number else value


def _print_csv(columns: Sequence[str], rows: Iterator[list[str]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows(rows)


def _micros(at: str) -> int:
    return to_micros(datetime.fromisoformat(at))
