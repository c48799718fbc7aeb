"""`tidegate reconcile ack`, `unack` and `acks`: drift that is known and accepted raises no alert and no exit code."""

import getpass
import re
import secrets
from contextlib import closing
from typing import Annotated

import msgspec
import typer

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.reconciliation.acknowledgements import read_acknowledgements
from tidegate.operators.billing.acknowledgements import render_acknowledgement
from tidegate.operators.events.rfc3339 import parse
from tidegate.operators.model.ports import ControlLog
from tidegate.serving.cli.output import AsJson, Failed, print_lines, print_table
from tidegate.serving.views.acknowledge import Asked, Unfit, record_of, words_of
from tidegate.serving.views.formatting import moment
from tidegate.settings.reconciliation import ReconciliationSettings, load_reconciliation_settings

NOTES_READ = 100_000
AMOUNT = re.compile(r"(0|[1-9][0-9]{0,29})(\.[0-9]{1,24})?")

Meter = Annotated[str, typer.Argument(metavar="METER", help="The meter.")]
Customer = Annotated[str, typer.Option(help="The customer; without one, all customers of a cause.")]
Period = Annotated[str | None, typer.Option(help="The period's start, if there are findings of several.")]
Cause = Annotated[str, typer.Option(help="All findings of this cause, such as not_on_plan, instead of one.")]
Why = Annotated[str, typer.Option(help="Why; it is written down with your name.")]


def ack(
    meter: Meter,
    why: Why,
    customer: Customer = "",
    period: Period = None,
    cause: Cause = "",
    up_to: Annotated[
        str | None,
        typer.Option(help="Units that are accepted: else what is off now; of a cause, any amount."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Accept drift: it stays listed, raises no alert, and is no reason for exit code 1 until it grows."""
    if up_to is not None and not AMOUNT.fullmatch(up_to):
        raise Failed(f"--up-to: needs an amount such as 12.5, got {up_to[:40]!r}")
    _append(Asked(customer, meter, _start(period), cause, up_to), why, as_json)


def unack(
    meter: Meter,
    why: Why,
    customer: Customer = "",
    period: Period = None,
    cause: Cause = "",
    as_json: AsJson = False,
) -> None:
    """Withdraw an acknowledgement: what it covered is drift again."""
    _append(Asked(customer, meter, _start(period), cause, None, is_withdrawn=True), why, as_json)


def acks(as_json: AsJson = False) -> None:
    """List the acknowledgements in force, the oldest first."""
    with closing(_control(load_reconciliation_settings())) as log:
        found = read_acknowledgements(log).list_in_force()
    if as_json:
        print_lines(msgspec.json.encode(render_acknowledgement(one)) for one in found)
        return
    columns = ("at (UTC)", "meter", "customer", "period or cause", "up to", "by", "why")
    rows = [
        (
            moment(one.at),
            one.meter,
            one.customer or "all",
            one.cause or moment(one.start or 0),
            "any amount" if one.up_to is None else one.up_to,
            one.by,
            one.reason,
        )
        for one in found
    ]
    print_table(columns, rows, "Nothing is acknowledged.")


def _append(asked: Asked, why: str, as_json: bool) -> None:
    if not why.strip():
        raise Failed("--why: needs a reason")
    settings = load_reconciliation_settings()
    with closing(_control(settings)) as log, closing(settings.store.open_reader()) as reader:
        findings = [
            msgspec.json.decode(note.body)
            for note in reader.notes("drift", asked.customer or None, NOTES_READ)
        ]
        try:
            record = record_of(
                asked,
                findings,
                read_acknowledgements(log),
                id=f"ack-{secrets.token_hex(8)}",
                reason=why,
                by=getpass.getuser(),
                at=wall_clock(),
            )
        except Unfit as error:
            raise Failed(str(error)) from None
        log.append(record)
    if as_json:
        print_lines([msgspec.json.encode(render_acknowledgement(record))])
    else:
        print(words_of(record))


def _control(settings: ReconciliationSettings) -> ControlLog:
    log: ControlLog = settings.store.require().open_control()
    return log


def _start(period: str | None) -> int | None:
    try:
        return None if period is None else parse(period)
    except ValueError as error:
        raise Failed(f"--period: {error}") from None
