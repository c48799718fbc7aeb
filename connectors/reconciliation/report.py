"""What reconciliation found, for people and programs: lines of JSON, and a table on the terminal.

A line is a JSON object: of a total that is off or was, of a subscription that could not be read, or of a pass that
ended. Lines come at least once; `pass`, `customer`, `meter` and `period_start` tell repeats.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.connectors.files.private_files import make_private_folder
from tidegate.connectors.reconciliation.book_reader import Pass
from tidegate.operators.billing.coverage import CoverageLine, CoverageSum, format_money
from tidegate.operators.billing.drift_status import DriftStatus
from tidegate.operators.columns.quantity import format_quantity
from tidegate.operators.model.wire import format_instant

PIPE_COLUMNS = 400
COLOURS = {"drift": "red", "suspect": "yellow", "acknowledged": "green", "conflict": "red"}


class LinesToFile:
    """Appends lines to a file, each on disk when `write` returns."""

    def __init__(self, path: str) -> None:
        make_private_folder(Path(path).parent)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, lines: Sequence[bytes]) -> None:
        if lines:
            view: Any = memoryview(b"".join(line + b"\n" for line in lines))
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)


class LinesToStdout:
    """Prints lines."""

    def write(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            print(line.decode())
        sys.stdout.flush()


def console(*, stderr: bool = False) -> Console:
    """Return a console that cuts nothing off in a pipe."""
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if is_terminal else PIPE_COLUMNS, highlight=False)


def table(standings: Sequence[DriftStatus]) -> Table:
    """All that is off: whose, by how much, why, and what is done about it."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("", "customer", "meter", "period (UTC)", "ours", "biller's", "drift", "why", "repair"):
        is_number = name in ("ours", "biller's", "drift")
        made.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for one in standings:
        made.add_row(*_row(one))
    return made


def proof_table(sums: Sequence[CoverageSum]) -> Table:
    """Return the proof added up by meter: what was used, and what became of it."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold", title="coverage", title_justify="left")
    names = (
        "meter",
        "totals",
        "ours",
        "billed",
        "in flight",
        "held back",
        "unbilled",
        "acknowledged",
        "worth",
    )
    for name in names:
        made.add_column(name, justify="left" if name == "meter" else "right", no_wrap=True)
    for one in sums:
        worth = format_money(one.worth, one.currency) if one.currency else "no price known"
        units = map(
            format_quantity,
            (one.ours, one.billed, one.in_flight, one.held_back, one.unbilled, one.acknowledged),
        )
        made.add_row(*map(Text, (one.meter, f"{one.totals:,}", *units, worth if one.unbilled else "")))
    return made


def proof_line(number: int, line: CoverageLine) -> bytes:
    """Return a line of the proof as JSON; units as decimal text, `worth` in the currency's smallest unit."""
    fields = {
        "pass": number,
        "status": "coverage",
        "customer": line.customer,
        "meter": line.meter,
        "period_start": format_instant(line.span.start),
        "period_end": format_instant(line.span.end),
        "ours": format_quantity(line.ours),
        "billed": format_quantity(line.billed),
        "in_flight": format_quantity(line.in_flight),
        "held_back": format_quantity(line.held_back),
        "unbilled": format_quantity(line.unbilled),
        "cause": line.cause,
        "state": _state(line),
        "currency": line.currency,
        "worth": None if line.worth is None else f"{line.worth:f}",
    }
    return msgspec.json.encode(fields)


def _state(line: CoverageLine) -> str:
    if not line.cause:
        return "billed" if line.ours == line.billed else "in flight"
    return "named, acknowledged" if line.is_acknowledged else "named"


def sum_fields(one: CoverageSum) -> dict[str, Any]:
    """Return a sum of the proof, for JSON."""
    units = {
        name: format_quantity(getattr(one, name))
        for name in ("ours", "billed", "in_flight", "held_back", "unbilled", "acknowledged")
    }
    worth = {"currency": one.currency, "worth": f"{one.worth:f}", "unpriced": format_quantity(one.unpriced)}
    return {"meter": one.meter, "totals": one.totals, **units, **worth}


def summary(last: Pass, standings: Sequence[DriftStatus], unread: int) -> str:
    """One line about a pass, and what is off after it."""
    figures = last.figures
    counts = Counter(one.status for one in standings)
    parts = [
        f"pass {last.number}: {figures.get('subscriptions', 0):,} subscriptions",
        f"{figures.get('totals', 0):,} totals",
        f"{counts['drift']:,} drifted",
        f"{counts['suspect']:,} suspect",
        f"{counts['acknowledged']:,} acknowledged",
        *([f"{counts['conflict']:,} in conflict"] if counts["conflict"] else ()),
        f"{figures.get('requests', 0):,} requests",
    ]
    if unread:
        parts.append(f"{unread:,} could not be read")
    return ", ".join(parts)


def _row(one: DriftStatus) -> tuple[Text, ...]:
    found = msgspec.json.decode(one.findings, type=dict[str, Any])
    period = f"{_day(found.get('period_start'))} – {_day(found.get('period_end'))}"
    why = "\n".join(
        f"{finding['cause']} {finding['quantity'] if finding['quantity'] is not None else '?'}"
        + (f" ({finding['events']:,} events)" if finding["events"] else "")
        for finding in found.get("findings", ())
    )
    repairs = "\n".join(f"{act['state']} {act['act']}" for act in found.get("repairs", ()))
    if one.status == "suspect":
        why = "to be looked at once more"
    why = why or str(found.get("problem", ""))
    if "money" in found:
        why = f"{why}\n{found['money']}"
    if said := found.get("acknowledged"):
        why = f"{why}\nacknowledged by {said['by']}: {said['reason']}"
    numbers = (str(found.get(name, "")) for name in ("ours", "billers", "drift"))
    status = Text(one.status, style=COLOURS.get(one.status, ""))
    return status, *map(Text, (one.customer, one.meter, period, *numbers, why, repairs or "none"))


def _day(at: Any) -> str:
    return str(at)[:16].replace("T", " ") if at else "?"
