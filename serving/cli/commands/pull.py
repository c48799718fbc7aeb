"""`tidegate catalog pull`: the provider's meters, plans and periods, shown as a diff, and applied if asked for."""

import difflib
import getpass
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from tidegate.operators.billing.provider import Subscription
from tidegate.operators.billing.subscriptions import LIVE
from tidegate.operators.model.ports import ControlLog
from tidegate.serving.cli.output import AsJson, Failed, console, print_lines
from tidegate.settings.addresses.sinks import Dodo
from tidegate.settings.catalog.file import read_text
from tidegate.settings.catalog.pull import NOTE_MAX, Pulled, pull_catalog
from tidegate.settings.catalog.versions import apply_file, apply_text
from tidegate.settings.problems import SettingsError
from tidegate.settings.reconciliation import ReconciliationSettings, load_reconciliation_settings

if TYPE_CHECKING:
    from tidegate.connectors.dodo.reads import DodoReads

SAME = "Nothing to change: the catalog says what the provider says."
STYLES = {"+": "green", "-": "red", "@": "cyan"}


class Base(NamedTuple):
    """What is changed: the newest version's text, or the file's, and its number."""

    text: str
    number: int


def pull(
    apply: Annotated[bool, typer.Option("--apply", help="Make it the catalog in force.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write it into the catalog file too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pull meters, plans, periods and free quantities from the provider and show the changes; all else stays."""
    settings = load_reconciliation_settings()
    settings.store.make()
    with closing(settings.store.open_control()) as control:
        base = _base(control, settings.catalog)
        made = _pulled(settings, base.text)
        screen = Console(stderr=True, quiet=True) if as_json else console()
        done: dict[str, object] = {
            "changes": made.changes,
            "conflicts": made.conflicts,
            "warnings": made.warnings,
            "applied": None,
        }
        for conflict in made.conflicts:
            screen.print(Text(f"conflict: {conflict}", style="red"))
        for warning in made.warnings:
            screen.print(Text(f"! {warning}", style="yellow"))
        if not made.changes:
            words = f"{len(made.conflicts):,} conflicts are left." if made.conflicts else SAME
            screen.print(words)
            _print_json(as_json, done)
            return
        for line in _diff(base.text, made.text):
            screen.print(line, soft_wrap=True)
        if write:
            settings.catalog.write_text(made.text)
            screen.print(f"{settings.catalog}: written.")
        if not apply:
            screen.print(f"{len(made.changes):,} changes. Nothing is applied; add --apply to do it.")
            _print_json(as_json, done)
            return
        note = "; ".join(made.changes)[:NOTE_MAX]
        version = apply_text(
            control, made.text, origin="platform", by=getpass.getuser(), note=note, expected=base.number
        )
    screen.print(f"{len(made.changes):,} changes are applied as catalog version {version.number}.")
    _print_json(as_json, done | {"applied": version.number})


def _print_json(as_json: bool, fields: dict[str, object]) -> None:
    if as_json:
        print_lines([msgspec.json.encode(fields)])


def _base(control: ControlLog, path: Path) -> Base:
    """Return the newest catalog, with what the file has changed since it was last applied."""
    newest = apply_file(control, path) if path.exists() else control.catalog()
    if newest is not None:
        return Base(newest.text, newest.number)
    return Base(read_text(path) if path.exists() else "", 0)


def _pulled(settings: ReconciliationSettings, text: str) -> Pulled:
    if not isinstance(settings.billing, Dodo):
        raise SettingsError([f"TIDEGATE_BILLING: needs dodo: to pull from, got {settings.billing}"])
    # Here, as its HTTP client is no burden to those who bill elsewhere.
    from tidegate.connectors.dodo.client import DodoError
    from tidegate.connectors.dodo.reads import DodoReads

    try:
        with closing(settings.billing.open_client(settings.dodo_api_key)) as client:
            return _read(DodoReads(client), text)
    except DodoError as error:
        raise Failed(str(error)) from None


def _read(reads: "DodoReads", text: str) -> Pulled:
    with Console(stderr=True).status("reading meters") as status:
        meters = reads.meters()
        status.update("reading subscriptions")
        listed = reads.subscriptions()
        whole: list[Subscription] = []
        for done, one in enumerate(listed, 1):
            # Each, as a subscription keeps the meters and prices that its product had when it was made.
            whole.append(reads.subscription(one.subscription_id) if one.status in LIVE else one)
            status.update(f"reading subscriptions: {done:,} of {len(listed):,}")
    return pull_catalog(text, meters, whole)


def _diff(before: str, after: str) -> Iterator[Text]:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "in force", "pulled", n=1, lineterm=""
    )
    for line in lines:
        yield Text(line, style=STYLES.get(line[:1], ""))
