"""`tidegate check` and `tidegate usage`: what the gate says, and how a customer stands."""

import sys
from contextlib import closing
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
import typer

from tidegate.connectors.clock import wall_clock
from tidegate.operators.model.ports import StoreError
from tidegate.serving.cli.output import AsJson, Failed, console, print_lines, print_table
from tidegate.serving.gate import Gate, UnknownMeter
from tidegate.serving.http.readers.unmetered import read_unmetered
from tidegate.serving.http.readers.usage import usage_body
from tidegate.serving.http.schemas import UsageBody, exact
from tidegate.serving.http.serialization import bodies, decision_body
from tidegate.serving.views.formatting import grouped, moment
from tidegate.serving.views.limit_status import read_account
from tidegate.settings.catalog.versions import CatalogFollower
from tidegate.settings.settings import load_settings

NO = 3
"""The exit code where the answer is no; 1 is an error, 2 a misuse."""
TIMEOUT = timedelta(seconds=5)
ALERTS_SHOWN = 5

StoreAddress = Annotated[
    str | None,
    typer.Option("--store", metavar="ADDRESS", help="Such as sqlite:data/tidegate.db, else TIDEGATE_STORE."),
]


def check(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER")],
    meter: Annotated[str, typer.Argument(metavar="METER")],
    quantity: Annotated[str, typer.Argument(metavar="[QUANTITY]")] = "1",
    as_json: AsJson = False,
    store: StoreAddress = None,
) -> None:
    """Says whether so much more may be used now; ends with 3 if not."""
    address = load_settings({"source": "file:-"} | ({"store": store} if store is not None else {})).store
    address.require()
    try:
        amount = Decimal(quantity)
        with Gate.open(store, near=False, timeout=TIMEOUT) as gate:
            decision = gate.check(customer, meter, amount)
    except UnknownMeter as error:
        raise Failed(str(error)) from None
    except (ValueError, InvalidOperation) as error:
        raise Failed(f"quantity: needs a number, got {quantity!r} ({error})") from None
    if decision.reason == "unavailable":
        raise StoreError(decision.detail)
    if decision.detail:
        print(decision.detail, file=sys.stderr)
    if as_json:
        print_lines([msgspec.json.encode(decision_body(decision))])
    else:
        answer = "yes" if decision.allowed else "no"
        limit = f" of {grouped(str(decision.limit))}" if decision.limit is not None else ""
        used = f", {grouped(str(decision.used))}{limit} used" if decision.used is not None else ""
        print(f"{answer}: {decision.reason}{used}")
    if not decision.allowed:
        raise typer.Exit(NO)


def usage(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER")],
    hours: Annotated[int, typer.Option(min=0, max=840, help="Also so many hours of buckets, as JSON.")] = 0,
    days: Annotated[int, typer.Option(min=0, max=400, help="Also so many days of buckets, as JSON.")] = 0,
    as_json: AsJson = False,
    store: StoreAddress = None,
) -> None:
    """Show a customer's totals, limits and bill in the current period."""
    given = {"source": "file:-"} | ({"store": store} if store is not None else {})
    address = load_settings(given).store.require()
    now = wall_clock()
    with closing(address.open_control()) as log, closing(address.open_reader()) as reader:
        stored, held = read_account(reader, customer, now)
        body = usage_body(
            CatalogFollower(log).current,
            customer,
            stored,
            held,
            bodies(reader.notes("alert", customer, ALERTS_SHOWN)),
            read_unmetered(reader, customer, ALERTS_SHOWN),
            now=now,
            at=now,
            hours=hours,
            days=days,
        )
    if as_json:
        print_lines([msgspec.json.encode(body)])
    else:
        _show(body)


def _show(body: UsageBody) -> None:
    start, end = (
        edge[:16].replace("T", " ") if edge else "for ever" for edge in (body.period.start, body.period.end)
    )
    period = f"{start} to {end} UTC"
    print(f"{body.customer}: plan {body.plan or 'none'}, {period} ({body.zone}), catalog {body.catalog}")
    rows = []
    for meter in body.meters:
        of = meter.limit.cap or meter.limit.included
        share = f"{meter.share} %" if meter.share is not None else ""
        rows.append(
            (meter.meter, grouped(meter.total), grouped(of) if of else "", share, meter.standing, meter.bill)
        )
    print_table(("meter", "used>", "of>", "share>", "status", "bill>"), rows, "The catalog has no meters.")
    console().print(f"bill {exact(body.bill)}")
    for alert in body.alerts:
        console().print(alert_line(alert), markup=False)
    for cause in body.unmetered:
        how = "partly metered" if cause.partly else "not metered"
        console().print(f"{cause.events:,} {how}: {cause.text}", markup=False)


def alert_line(alert: dict[str, Any]) -> str:
    """One alert in a line: whatever kind it is, with what it has."""
    parts = (
        alert.get("customer"),
        alert.get("meter"),
        alert.get("kind"),
        alert.get("level"),
        alert.get("state"),
    )
    at = alert.get("at")
    when = moment(at) if isinstance(at, int) else str(at or "")[:19].replace("T", " ")
    return " ".join([when, *(str(part) for part in parts if part)])
