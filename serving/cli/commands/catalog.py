"""`tidegate catalog apply`, `diff` and `history`: the catalog's versions in the store."""

import difflib
import getpass
from contextlib import closing
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from tidegate.operators.model.ports import CatalogVersion, ControlLog
from tidegate.serving.cli.commands.ask import NO, StoreAddress
from tidegate.serving.cli.output import AsJson, Failed, console, print_lines, print_table
from tidegate.serving.http.serialization import version_body
from tidegate.settings.catalog.file import read_text
from tidegate.settings.catalog.versions import apply_text
from tidegate.settings.settings import load_settings

COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    note: Annotated[str, typer.Option(help="Why, for the history.")] = "",
    expect: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Only if this is the newest version still.")
    ] = None,
    as_json: AsJson = False,
    store: StoreAddress = None,
) -> None:
    """Make the file the newest version, whole or, with all errors shown, not at all; the same text makes none."""
    text = read_text(file)
    with closing(_log(store)) as log:
        newest = log.catalog()
        if newest is not None and newest.text == text and expect in (None, newest.number):
            applied, is_new = newest, False
        else:
            by = getpass.getuser()
            applied, is_new = (
                apply_text(log, text, origin="cli", by=by, note=note, expected=expect, name=str(file)),
                True,
            )
    if as_json:
        print_lines([msgspec.json.encode(version_body(applied))])
    else:
        print(f"catalog: {'is now' if is_new else 'is already'} version {applied.number}")


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A version's number or a file.")],
    new: Annotated[
        str | None, typer.Argument(metavar="[NEW]", help="The same; with OLD alone, the newest is OLD.")
    ] = None,
    as_json: AsJson = False,
    store: StoreAddress = None,
) -> None:
    """Show the differences between two versions, or between the newest and a file; exit with 3 if there are any."""
    with closing(_log(store, has_to_exist=True)) as log:
        first, second = _side(log, None if new is None else old), _side(log, new or old)
    texts = first[1].splitlines(), second[1].splitlines()
    lines = list(difflib.unified_diff(*texts, first[0], second[0], lineterm=""))
    if as_json:
        found = {"from": first[0], "to": second[0], "differs": bool(lines), "diff": lines}
        print_lines([msgspec.json.encode(found)])
    else:
        for line in lines:
            console().print(Text(line, style=COLOURS.get(line[:1], "")))
    if lines:
        raise typer.Exit(NO)


def history(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many, the newest.")] = 50,
    as_json: AsJson = False,
    store: StoreAddress = None,
) -> None:
    """Every version that was applied, when, by whom and why, the newest first."""
    with closing(_log(store, has_to_exist=True)) as log:
        versions = [version_body(version) for version in log.catalogs(limit)]
    if as_json:
        print_lines(map(msgspec.json.encode, versions))
        return
    rows = [
        (str(one.number), one.applied_at[:19].replace("T", " "), one.origin, one.by, one.note)
        for one in versions
    ]
    print_table(("version>", "applied (UTC)", "from", "by", "why"), rows, "No catalog was applied yet.")


def _side(log: ControlLog, said: str | None) -> tuple[str, str]:
    """Return a name and a text: of a version by its number, of the newest without one, else of a file."""
    if said is None or said.isdigit():
        version: CatalogVersion | None = log.catalog(int(said) if said else None)
        if version is None:
            raise Failed(f"catalog: there is no version {said}" if said else "catalog: none was applied yet")
        return f"version {version.number}", version.text
    return said, read_text(said)


def _log(store: str | None, has_to_exist: bool = False) -> ControlLog:
    given = {"source": "file:-"} | ({"store": store} if store is not None else {})
    address = load_settings(given).store
    if has_to_exist:
        address.require()
    address.make()
    log: ControlLog = address.open_control()
    return log
