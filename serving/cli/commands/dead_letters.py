"""`tidegate dead-letters`: events that were not metered, and usage that the platform refused; shown and dealt with.

Letters of the flow are lines of a file; what is done about them is noted in a file beside it. A letter that is not in
the file may be in the outbox, where usage lies that the platform would not take.
"""

import base64
import getpass
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.files.dead_letters import Letter, LetterAct, LetterError, Letters
from tidegate.connectors.outbox import operator_actions
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.reader import Entry, OutboxReader
from tidegate.connectors.outbox.schema import KEPT_BACK
from tidegate.operators.billing.provider import MeterReader
from tidegate.operators.columns.quantity import format_quantity
from tidegate.operators.events.chunk import Reject
from tidegate.operators.events.readings import decode_value
from tidegate.operators.events.validate import judge
from tidegate.operators.model.aggregates import ADDITIVE
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.periods import MAX_AT
from tidegate.operators.model.ports import Adjustment, ControlConflict, ControlLog
from tidegate.operators.model.wire import format_instant
from tidegate.serving.cli.output import AsJson, Failed, console, print_done, print_lines, print_table
from tidegate.serving.views.formatting import clipped, moment
from tidegate.settings.addresses.sinks import DeadLetterFile, Dodo
from tidegate.settings.catalog.file import load_catalog
from tidegate.settings.catalog.versions import Catalogs
from tidegate.settings.settings import Settings, load_settings

SHOWN = 60
ID_SHOWN = 12
# Nobody knows whether these were counted; an operator does, and an adjustment says so.
ADJUSTABLE = ("too_late", "conflict")

Ids = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Ids as `list` shows them; their beginning will do.")
]
Why = Annotated[str, typer.Option(help="Why; it is written down.")]

app = typer.Typer(help="Events that were not metered, and usage that was not billed.", no_args_is_help=True)


@app.command("list")
def list_(
    as_json: AsJson = False,
    every: Annotated[bool, typer.Option("--all", help="Also those that are dealt with.")] = False,
) -> None:
    """The dead letters of the file that TIDEGATE_DEAD_LETTERS names, oldest first."""
    path = _file(_settings())
    if not path.exists():
        print(f"No dead letters: there is no file {path}, which begins with the first one.", file=sys.stderr)
        return
    if as_json:
        with path.open("rb") as file:
            # A line without its end is still being written.
            print_lines(line[:-1] for line in file if line.endswith(b"\n"))
        return
    letters = Letters(path)
    acts = letters.acts()
    rows = [_row(letter, acts.get(letter.id)) for letter in letters if every or letter.id not in acts]
    hidden = "" if every or not acts else f" {len(acts):,} are dealt with; --all shows them."
    columns = ("id", "state", "received (UTC)", "reason", "detail", "payload")
    print_table(columns, rows, f"No dead letters.{hidden}")


@app.command()
def show(id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """One dead letter whole: what came, why it was not taken, what can be done about it."""
    settings = _settings()
    letters = _letters(settings)
    found = letters.find([id]).get(id) if letters else None
    if found is not None and letters is not None:
        _show_letter(settings, found, letters.acts().get(found.id), as_json)
        return
    entry = _in_outbox(settings, [id]).get(id)
    if entry is None:
        raise LetterError(f"dead letter {id!r}: is neither in the file nor in the outbox; see its list")
    fields = _entry_fields(entry)
    if as_json:
        print(json.dumps(fields))
        return
    _print_fields(fields)


@app.command()
def retry(
    ids: Ids,
    apply: Annotated[bool, typer.Option("--apply", help="Apply the adjustments that are named.")] = False,
    to: Annotated[
        Path | None, typer.Option(help="Append the events to this file, which a source follows.")
    ] = None,
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Usage that was refused goes out again; an event goes to a source again, or becomes an adjustment."""
    settings = _settings()
    found, rest = _sorted_out(settings, ids)
    letters = _letters(settings)
    if rest:
        with _outbox(settings) as outbox:
            sent = len(operator_actions.retry(outbox, rest, by=getpass.getuser(), why=why))
        print_done(as_json, f"{sent:,} will be sent again", sent_again=sent)
    if not found:
        return
    assert letters is not None
    if to is not None:
        _send_to(to, found)
        letters.note(
            format_instant(wall_clock()), [letter.id for letter in found], "retried", why or f"to {to}"
        )
        words = f"{len(found):,} events are appended to {to}; the flow judges them again"
        print_done(as_json, words, appended=len(found), to=str(to))
        return
    adjustable = [letter for letter in found if letter.reason in ADJUSTABLE]
    for letter in found:
        if letter not in adjustable:
            words = "mend its payload and send that, or name a file that a source follows with --to"
            error = f"{letter.reason} cannot be an adjustment; {words}"
            print_done(as_json, f"{letter.id}: {error}", id=letter.id, error=error)
    _adjust(settings, letters, adjustable, apply=apply, why=why, as_json=as_json)


@app.command()
def drop(
    ids: Ids,
    why: Annotated[str, typer.Option(help="Why nobody is to be billed; it is written down.")],
    as_json: AsJson = False,
) -> None:
    """Gives letters up for good. Nothing is deleted; the act is written down."""
    settings = _settings()
    found, rest = _sorted_out(settings, ids)
    letters = _letters(settings)
    if found and letters is not None:
        letters.note(format_instant(wall_clock()), [letter.id for letter in found], "dropped", why)
        print_done(as_json, f"{len(found):,} are dropped", dropped=len(found))
    if rest:
        with _outbox(settings) as outbox:
            given_up = len(operator_actions.drop(outbox, rest, by=getpass.getuser(), why=why))
        print_done(as_json, f"{given_up:,} are not billed", not_billed=given_up)


def adjustments(catalog: Catalog, letter: Letter, by: str, why: str) -> list[Adjustment]:
    """What would count the letter's event: one adjustment for each meter that adds it up.

    LetterError where the event cannot be read. Ids come of the letter, so that it counts once.
    """
    fields = judge(letter.payload, None, MAX_AT)
    if isinstance(fields, Reject):
        raise LetterError(f"dead letter {letter.id}: cannot be read as an event ({fields.detail})")
    properties = decode_value(fields.data)
    made = []
    for meter in catalog.meters:
        if meter.event_name != fields.name or meter.kind not in ADDITIVE:
            continue
        quantity = MeterReader(meter).read([properties if isinstance(properties, dict) else {}])[0]
        if quantity:
            made.append(
                Adjustment(
                    id=f"dead-letter:{letter.id}:{meter.name}",
                    customer=fields.customer,
                    meter=meter.name,
                    at=fields.at,
                    quantity=format_quantity(quantity),
                    reason=why or f"dead letter {letter.id}: {letter.reason}",
                    by=by,
                )
            )
    return made


def _adjust(
    settings: Settings, letters: Letters, found: Sequence[Letter], *, apply: bool, why: str, as_json: bool
) -> None:
    if not found:
        return
    with closing(settings.store.open_control()) as control:
        catalogs = Catalogs(control)
        catalog = catalogs.current if catalogs.newest else load_catalog(settings.catalog)
        rows = []
        for letter in track(
            found, "adjusting", console=Console(stderr=True), disable=not apply or len(found) < 100
        ):
            made = adjustments(catalog, letter, getpass.getuser(), why)
            rows += [(a.customer, a.meter, moment(a.at), a.quantity, letter.id[:ID_SHOWN]) for a in made]
            if apply:
                for adjustment in made:
                    _append(control, adjustment, letter)
                letters.note(format_instant(wall_clock()), [letter.id], "adjusted", why)
    columns = ("customer", "meter", "at (UTC)", "quantity>", "letter")
    if as_json:
        names = ("customer", "meter", "at", "quantity", "letter")
        print_lines(
            json.dumps(dict(zip(names, row, strict=True)) | {"applied": apply}).encode() for row in rows
        )
        return
    print_table(columns, rows, "No meter adds these up.")
    done = (
        "are appended to the control log; the flow applies each once" if apply else "would do it; add --apply"
    )
    print(f"{len(rows):,} adjustments {done}. The biller is not told of them.")


def _append(control: ControlLog, adjustment: Adjustment, letter: Letter) -> None:
    try:
        control.append(adjustment)
    except ControlConflict as conflict:
        raise Failed(
            f"dead letter {letter.id[:ID_SHOWN]} was adjusted before by other meters: {conflict}"
        ) from None


def _sorted_out(settings: Settings, ids: Sequence[str]) -> tuple[list[Letter], list[str]]:
    """The letters of the file, and the ids of usage in the outbox; LetterError for what is in neither."""
    letters = _letters(settings)
    found = letters.find(ids) if letters else {}
    rest = [id for id in ids if id not in found]
    held = _in_outbox(settings, rest)
    if unknown := [id for id in rest if id not in held]:
        raise LetterError(f"dead letter {unknown[0]!r}: is neither in the file nor in the outbox")
    return list({letter.id: letter for letter in found.values()}.values()), rest


def _in_outbox(settings: Settings, ids: Sequence[str]) -> dict[str, Entry]:
    """What the outbox keeps back of these."""
    if not ids or not isinstance(settings.billing, Dodo):
        return {}
    path = settings.billing.outbox_path(settings.data_dir)
    if not path.is_file():
        return {}
    with closing(OutboxReader(path)) as reader:
        return {id: entry for id, entry in reader.find(ids).items() if entry.state in KEPT_BACK}


@contextmanager
def _outbox(settings: Settings) -> Iterator[Outbox]:
    assert isinstance(settings.billing, Dodo)
    path = settings.billing.outbox_path(settings.data_dir)
    with closing(Outbox(path, unfolded=settings.billing.rollup != "none")) as outbox:
        yield outbox


def _send_to(path: Path, found: Sequence[Letter]) -> None:
    """Appends the events' own bytes, each as one line; on disk when this returns."""
    if broken := [letter for letter in found if b"\n" in letter.payload]:
        raise LetterError(f"dead letter {broken[0].id}: has a line break inside; mend it by hand")
    with path.open("ab") as file:
        file.write(b"".join(letter.payload + b"\n" for letter in found))
        file.flush()
        os.fsync(file.fileno())


def _show_letter(settings: Settings, letter: Letter, act: LetterAct | None, as_json: bool) -> None:
    fields: dict[str, Any] = {
        "id": letter.id,
        "reason": letter.reason,
        "detail": letter.detail,
        "received_at": letter.received_at,
        "state": _state(act),
        "payload": _shown(letter.payload),
    }
    if act is not None:
        fields |= {"dealt_with_at": act.at, "by": act.by, "why": act.why}
    if as_json:
        print(json.dumps(fields))
        return
    _print_fields(fields)
    if act is None:
        command = f"tidegate dead-letters retry {letter.id[:ID_SHOWN]}"
        hint = f"{command} --apply" if letter.reason in ADJUSTABLE else f"{command} --to FILE"
        console().print(
            f"What can be done: {hint}, or tidegate dead-letters drop {letter.id[:ID_SHOWN]} --why …"
        )


def _print_fields(fields: Mapping[str, Any]) -> None:
    print_table(("", ""), [(name, str(value)) for name, value in fields.items()], "")


def _entry_fields(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "customer": entry.customer,
        "at": format_instant(entry.at),
        "state": entry.state.name,
        "reason": entry.reason,
        "detail": entry.detail,
        "payload": None if entry.body is None else _shown(entry.body),
    }


def _row(letter: Letter, act: LetterAct | None) -> tuple[str, ...]:
    received = letter.received_at[:19].replace("T", " ")
    shown = clipped(letter.detail, SHOWN), clipped(_shown(letter.payload), SHOWN)
    return letter.id[:ID_SHOWN], _state(act), received, letter.reason, *shown


def _state(act: LetterAct | None) -> str:
    return "open" if act is None else act.act


def _shown(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return base64.b64encode(payload).decode()


def _letters(settings: Settings) -> Letters | None:
    address = settings.dead_letters
    return Letters(Path(address.path)) if isinstance(address, DeadLetterFile) else None


def _file(settings: Settings) -> Path:
    address = settings.dead_letters
    if not isinstance(address, DeadLetterFile):
        raise LetterError(f"dead letters: go to {address}, which keeps none; list those of a file: address")
    return Path(address.path)


def _settings() -> Settings:
    return load_settings({"source": "file:-"})
