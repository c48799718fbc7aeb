"""`tidegate dead-letters`: events that were not metered, and usage that is not billed; shown and dealt with.

Rejects of the flow lie in a file; usage that the provider refused, or that is held back for review, lies in the outbox.
Here they are one list.
"""

import base64
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import track

from tidegate.operators.billing.provider import MeterReader
from tidegate.operators.columns.quantity import format_quantity
from tidegate.operators.events.chunk import Reject
from tidegate.operators.events.readings import decode_value
from tidegate.operators.events.validate import judge
from tidegate.operators.model.aggregates import ADDITIVE
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.dead_letters import (
    ADJUSTABLE,
    HELD,
    DeadLetterError,
    DeadLetterPlace,
    HeldLetter,
)
from tidegate.operators.model.periods import MAX_AT
from tidegate.operators.model.ports import Adjustment, ControlConflict, ControlLog
from tidegate.serving.cli.output import (
    AsJson,
    Failed,
    console,
    print_done,
    print_lines,
    print_table,
    user_name,
)
from tidegate.serving.views.dead_letters import find_letters, open_places
from tidegate.serving.views.formatting import clipped, moment
from tidegate.settings.catalog.file import load_catalog
from tidegate.settings.catalog.versions import CatalogFollower
from tidegate.settings.settings import Settings, load_settings

SHOWN = 60
ID_SHOWN = 12

Ids = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Ids as `list` shows them; their beginning will do.")
]
Why = Annotated[str, typer.Option(help="Why; it is written down.")]

app = typer.Typer(help="Events that were not metered, and usage that was not billed.", no_args_is_help=True)


@app.command("list")
def list_(
    as_json: AsJson = False,
    every: Annotated[bool, typer.Option("--all", help="Also those that are dealt with.")] = False,
    reason: Annotated[str | None, typer.Option(help="Only those of this reason.")] = None,
) -> None:
    """Print rejects of the flow, then usage that was refused or is held back, of each the oldest first."""
    settings = _settings()
    places = open_places(settings)
    address = settings.dead_letters
    if address.open_letters(settings.data_dir) is None:
        said = f"dead letters: go to {address}, which keeps none; list those of a file: address"
        if not places:
            raise DeadLetterError(said)
        print(said, file=sys.stderr)
    letters = (letter for place in places for letter in place.letters(reason, every=every))
    if as_json:
        print_lines(msgspec.json.encode(_fields(letter)) for letter in letters)
        return
    columns = ("id", "state", "received (UTC)", "customer", "reason", "detail", "payload")
    hint = "" if every else " Those that are dealt with are shown by --all."
    print_table(columns, [_row(letter) for letter in letters], f"No dead letters.{hint}")


@app.command()
def show(id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Print one dead letter whole: what came, why it was not taken, what can be done about it."""
    ((place, (letter,)),) = find_letters(open_places(_settings()), [id])
    fields = _fields(letter)
    if as_json:
        print(json.dumps(fields))
        return
    print_table(("", ""), [(name, str(value)) for name, value in fields.items()], "")
    if letter.state in HELD:
        command, short = (
            "tidegate dead-letters",
            letter.id[:ID_SHOWN] if letter.state == "open" else letter.id,
        )
        how = "" if place.sends_itself else " --apply" if letter.reason in ADJUSTABLE else " --to FILE"
        console().print(
            f"What can be done: {command} retry {short}{how}, or {command} drop {short} --why …", markup=False
        )


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
    """Send refused usage again; send an event to a source again, or make it an adjustment."""
    settings = _settings()
    for place, letters in find_letters(open_places(settings), ids):
        found = [letter.id for letter in letters]
        if place.sends_itself:
            sent = len(place.retry(found, by=user_name(), why=why))
            print_done(as_json, f"{sent:,} will be sent again", sent_again=sent)
        elif to is not None:
            place.retry(found, by=user_name(), why=why or f"to {to}", send=partial(_append_to, to))
            words = f"{len(found):,} events are appended to {to}; the flow judges them again"
            print_done(as_json, words, appended=len(found), to=str(to))
        else:
            _adjust(settings, place, letters, apply=apply, why=why, as_json=as_json)


@app.command()
def drop(
    ids: Ids,
    why: Annotated[str, typer.Option(help="Why nobody is to be billed; it is written down.")],
    as_json: AsJson = False,
) -> None:
    """Give letters up for good. What was done is written down."""
    for place, letters in find_letters(open_places(_settings()), ids):
        dropped = len(place.drop([letter.id for letter in letters], by=user_name(), why=why))
        if place.sends_itself:
            print_done(as_json, f"{dropped:,} are not billed", not_billed=dropped)
        else:
            print_done(as_json, f"{dropped:,} are dropped", dropped=dropped)


def adjustments(catalog: Catalog, letter: HeldLetter, by: str, why: str) -> list[Adjustment]:
    """Return what would count the letter's event: one adjustment for each meter that adds it up.

    DeadLetterError where the event cannot be read. Ids come of the letter, so that it counts once.
    """
    fields = judge(letter.payload or b"", None, MAX_AT)
    if isinstance(fields, Reject):
        raise DeadLetterError(f"dead letter {letter.id}: cannot be read as an event ({fields.detail})")
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
    settings: Settings,
    place: DeadLetterPlace,
    letters: Sequence[HeldLetter],
    *,
    apply: bool,
    why: str,
    as_json: bool,
) -> None:
    for letter in letters:
        if letter.reason not in ADJUSTABLE:
            words = "mend its payload and send that, or name a file that a source follows with --to"
            error = f"{letter.reason} cannot be an adjustment; {words}"
            print_done(as_json, f"{letter.id}: {error}", id=letter.id, error=error)
    found = [letter for letter in letters if letter.reason in ADJUSTABLE]
    if not found:
        return
    with closing(settings.store.open_control()) as control:
        version = CatalogFollower(control).current
        catalog = version.catalog if version.number else load_catalog(settings.catalog)
        rows = []
        shown = track(found, "adjusting", console=Console(stderr=True), disable=not apply or len(found) < 100)
        for letter in shown:
            made = adjustments(catalog, letter, user_name(), why)
            rows += [(a.customer, a.meter, moment(a.at), a.quantity, letter.id[:ID_SHOWN]) for a in made]
            if apply:
                place.retry(
                    [letter.id],
                    by=user_name(),
                    why=why,
                    send=partial(_append, control, made),
                    state="adjusted",
                )
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
    print(f"{len(rows):,} adjustments {done}. The provider does not get them.")


def _append(control: ControlLog, made: Sequence[Adjustment], letters: Sequence[HeldLetter]) -> None:
    for adjustment in made:
        try:
            control.append(adjustment)
        except ControlConflict as conflict:
            raise Failed(
                f"dead letter {letters[0].id[:ID_SHOWN]} was adjusted before by other meters: {conflict}"
            ) from None


def _append_to(path: Path, letters: Sequence[HeldLetter]) -> None:
    """Append the events' own bytes, each as one line; on disk when this returns."""
    payloads = [letter.payload or b"" for letter in letters]
    if broken := [letter for letter in letters if b"\n" in (letter.payload or b"")]:
        raise DeadLetterError(f"dead letter {broken[0].id}: has a line break inside; correct it by hand")
    with path.open("ab") as file:
        file.write(b"".join(payload + b"\n" for payload in payloads))
        file.flush()
        os.fsync(file.fileno())


def _fields(letter: HeldLetter) -> Mapping[str, Any]:
    fields: dict[str, Any] = {
        "id": letter.id,
        "place": letter.place,
        "customer": letter.customer,
        "at": letter.at,
        "reason": letter.reason,
        "detail": letter.detail,
        "received_at": letter.received_at,
        "state": letter.state,
    }
    try:
        fields["payload"] = None if letter.payload is None else letter.payload.decode()
    except UnicodeDecodeError:
        fields["payload_base64"] = base64.b64encode(letter.payload or b"").decode()
    if letter.act is not None:
        fields |= {"dealt_with_at": letter.act.at, "by": letter.act.by, "why": letter.act.why}
    return fields


def _row(letter: HeldLetter) -> tuple[str, ...]:
    received = letter.received_at[:19].replace("T", " ")
    fields = _fields(letter)
    payload = fields.get("payload", fields.get("payload_base64")) or ""
    # The ids of usage are the events' own, so their beginnings need not differ.
    id = letter.id[:ID_SHOWN] if letter.place.startswith("file:") else letter.id
    shown = clipped(letter.detail, SHOWN), clipped(payload, SHOWN)
    return id, letter.state, received, letter.customer, letter.reason, *shown


def _settings() -> Settings:
    return load_settings({"source": "file:-"})
