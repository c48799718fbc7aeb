"""`tidegate reconcile`: starts the reconciliation flow, shows how far it is, and what it found."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

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

from connectors.drift_book import BookError, BookReader, Pass
from connectors.drift_report import console, summary, table
from connectors.evidence import verify_runs
from serving.commands.output import AsJson, print_lines
from settings.reconciliation import load_reconciliation_settings

LOOK_S = 0.5
STOP_S = 10.0


def reconcile(
    once: Annotated[bool, typer.Option("--once", help="Make one pass and end.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Make the repairs that are allowed.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Only show what is known to be off.")] = False,
    customer: Annotated[str | None, typer.Option(help="Only this customer's findings, as --show.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Verify the signed evidence of all runs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compares what customers see with what they will be invoiced; ends with 1 after a pass that found drift."""
    settings = load_reconciliation_settings()
    folder: Path = settings.folder
    if verify:
        raise typer.Exit(_verify(folder))
    if show or customer is not None:
        raise typer.Exit(_show(folder, customer, as_json=as_json))
    given = {"TIDEGATE_RECONCILE_ONCE": "true"} if once else {}
    given |= {"TIDEGATE_RECONCILE_REPAIR": "true"} if repair else {}
    command = [sys.executable, "-m", "bytewax.run", "flows.reconciliation"]
    # Its tables are for people.
    printed = sys.stderr if as_json else None
    with subprocess.Popen(command, env={**os.environ, **given}, stdout=printed) as process:
        try:
            with _progress(folder) as look:
                while process.poll() is None:
                    look()
                    time.sleep(LOOK_S)
        except KeyboardInterrupt:
            # The flow hears of it as well, as both are of one terminal.
            process.wait(STOP_S)
            raise typer.Exit(130) from None
    if process.returncode:
        raise typer.Exit(process.returncode)
    if as_json:
        raise typer.Exit(_show(folder, None, as_json=as_json))
    with closing(BookReader(folder)) as book:
        raise typer.Exit(int(any(one.status == "drift" for one in book.open())))


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


def _show(folder: Path, customer: str | None, *, as_json: bool) -> int:
    """Print what is known to be off; 1 where anything has drifted."""
    with closing(BookReader(folder)) as book:
        found, last, unread = book.open(), book.last(), book.unread()
    found = [one for one in found if customer in (None, one.customer)]
    if as_json:
        figures = {
            "last": last and last._asdict(),
            "open": [msgspec.Raw(one.findings) for one in found],
            "unread": len(unread),
        }
        print_lines([msgspec.json.encode(figures)])
        return int(any(one.status == "drift" for one in found))
    screen = console()
    if found:
        screen.print(table(found))
    screen.print(summary(last, found, len(unread)) if last else "There was no pass yet.")
    return int(any(one.status == "drift" for one in found))


@contextmanager
def _progress(folder: Path) -> Iterator["_Look"]:
    """A bar on a terminal's standard error; elsewhere nothing, as what is found is printed by the flow."""
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
