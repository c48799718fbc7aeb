"""`tidegate reconcile`: starts the reconciliation flow, shows how far it is and what it found, acknowledges drift."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tidegate.connectors.reconciliation.acknowledgements import read_acknowledgements
from tidegate.connectors.reconciliation.book_reader import BookReader, Pass
from tidegate.connectors.reconciliation.book_schema import BookError
from tidegate.connectors.reconciliation.evidence import verify_runs
from tidegate.connectors.reconciliation.report import console, summary, table
from tidegate.operators.billing.acknowledgements import Acknowledgements, acknowledge
from tidegate.operators.billing.drift_status import DriftStatus
from tidegate.operators.model.errors import TidegateError
from tidegate.operators.model.wire import format_instant
from tidegate.serving.cli.commands.acknowledge import ack, acks, unack
from tidegate.serving.cli.output import print_lines
from tidegate.settings.addresses.extras import engine_missing
from tidegate.settings.reconciliation import ReconciliationSettings, load_reconciliation_settings

LOOK_S = 0.5
STOP_S = 10.0
STDERR = 2

app = typer.Typer(help="Compare what customers see with what they will be invoiced.")
app.command()(ack)
app.command()(unack)
app.command()(acks)


@app.callback(invoke_without_command=True)
def reconcile(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Make one pass and end.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Make the repairs that are allowed.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Only show what is known to be off.")] = False,
    customer: Annotated[str | None, typer.Option(help="Only this customer's findings, as --show.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Verify the signed evidence of all runs.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, all else on standard error.")
    ] = False,
) -> None:
    """Compare what customers see with what they will be invoiced; exit with 1 after a run that found drift.

    What is acknowledged is shown, and is no reason for 1.
    """
    if context.invoked_subcommand is not None:
        return
    settings = load_reconciliation_settings()
    if verify:
        raise typer.Exit(_verify(settings.folder))
    if is_run := not show and customer is None:
        _run(settings, once=once, repair=repair, is_quiet=as_json)
    book = _Shown(settings, customer)
    if as_json:
        print_lines([msgspec.json.encode(book.document())])
    elif not is_run:
        book.print()
    raise typer.Exit(book.exit_code())


def _run(settings: ReconciliationSettings, *, once: bool, repair: bool, is_quiet: bool) -> None:
    if reason := engine_missing():
        sys.exit(f"tidegate reconcile: {reason}")
    given = {"TIDEGATE_RECONCILE_ONCE": "true"} if once else {}
    given |= {"TIDEGATE_RECONCILE_REPAIR": "true"} if repair else {}
    command = [sys.executable, "-m", "bytewax.run", "tidegate.flows.reconciliation"]
    environment, out = {**os.environ, **given}, STDERR if is_quiet else None
    with subprocess.Popen(command, env=environment, stdout=out) as process:
        try:
            with _progress(settings.folder) as look:
                while process.poll() is None:
                    look()
                    time.sleep(LOOK_S)
        except KeyboardInterrupt:
            # The flow hears of it as well, as both are of one terminal.
            process.wait(STOP_S)
            raise typer.Exit(130) from None
    if process.returncode:
        raise typer.Exit(process.returncode)


def _verify(folder: Path) -> int:
    """Print what the evidence comes to; 1 where any of it was changed, left out or put in."""
    found, wrong = verify_runs(folder)
    for words in wrong:
        print(words)
    if found:
        first, last = found[0], found[-1]
        print(f"{len(found):,} runs, {first.run} to {last.run}, signed with key {last.key}")
        print(f"run {last.run}: inputs {last.inputs}, outcome {last.outcome}, catalog {last.catalog}")
    if not found and not wrong:
        print("There is no evidence yet.")
    return int(bool(wrong))


class _Shown:
    """What the book has, under the acknowledgements of now; of one customer, by our name or the provider's."""

    def __init__(self, settings: ReconciliationSettings, customer: str | None) -> None:
        with closing(BookReader(settings.folder)) as book:
            self.last, self.unread = book.last(), book.unread()
            found = book.open()
            if customer is not None:
                found = [one for one in found if customer in _names(one)]
                names = dict.fromkeys([customer, *(one.customer for one in found)])
                self.proof = [line for name in names for line in book.proof(name)]
            else:
                self.proof = book.proof()
        self._known = _acknowledgements(settings)
        self.found = [self._taken(one) for one in found]

    def _taken(self, one: DriftStatus) -> DriftStatus:
        if self._known is None:
            return one
        fields = acknowledge(msgspec.json.decode(one.findings, type=dict[str, Any]), self._known)
        return one._replace(status=fields.get("status", one.status), findings=msgspec.json.encode(fields))

    def exit_code(self) -> int:
        return int(any(one.status in ("drift", "conflict") for one in self.found))

    def print(self) -> None:
        screen = console()
        if self.found:
            screen.print(table(self.found))
        screen.print(
            summary(self.last, self.found, len(self.unread)) if self.last else "There was no pass yet."
        )

    def document(self) -> dict[str, Any]:
        """Return all of it for JSON: the run, the findings, what could not be read, and the proof."""
        last = self.last
        run = None if last is None else {
            "pass": last.number,
            "started_at": format_instant(last.started_at),
            "ended_at": None if last.ended_at is None else format_instant(last.ended_at),
            "figures": dict(last.figures),
        }  # fmt: skip
        return {
            "run": run,
            "findings": [msgspec.Raw(one.findings) for one in self.found],
            "unread": [{"subscription": id, "problem": why} for id, why in self.unread],
            "coverage": self.proof,
            "is_drifted": bool(self.exit_code()),
        }


def _names(one: DriftStatus) -> tuple[str, str]:
    fields = msgspec.json.decode(one.findings, type=dict[str, Any])
    return one.customer, fields.get("billed_as", "")


def _acknowledgements(settings: ReconciliationSettings) -> Acknowledgements | None:
    """Return those in force; None where the store is not there, so that the book's last word stands."""
    try:
        with closing(settings.store.require().open_control()) as log:
            return read_acknowledgements(log)
    except TidegateError:
        return None


@contextmanager
def _progress(folder: Path) -> Iterator["_Look"]:
    """Show a progress bar on a terminal's standard error; elsewhere nothing, as the flow prints its findings."""
    screen = console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        yield _Look(folder, progress)


class _Look:
    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._task = progress.add_task("beginning", total=None)

    def __call__(self) -> None:
        try:
            with closing(BookReader(self._folder)) as book:
                last, due_at = book.last(), book.due_at()
        except BookError:
            return
        if last is not None and last.ended_at is None:
            words = _words(last, due_at)
            self._progress.update(
                self._task, description=words, total=last.done + last.left, completed=last.done
            )


def _words(last: Pass, due_at: int | None) -> str:
    wait = 0 if due_at is None else due_at / 1_000_000 - time.time()
    if last.round > 1 and wait > 1:
        return f"pass {last.number}: looking at suspects again in {wait:,.0f} s"
    return f"pass {last.number}: {last.figures.get('requests', 0):,} requests"
