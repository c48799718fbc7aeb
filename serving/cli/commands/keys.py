"""`tidegate keys`: API keys."""

import sys
from contextlib import closing
from datetime import timedelta
from typing import Annotated, Any

import msgspec
import typer

from tidegate.connectors.sqlite.api_keys import KeyFile, KeysError
from tidegate.operators.gate.access import SCOPES, ApiKey
from tidegate.serving.cli.output import AsJson, print_lines, print_table
from tidegate.serving.views.formatting import instant, moment
from tidegate.settings.durations import read_duration
from tidegate.settings.serving import load_serving_settings

app = typer.Typer(help="API keys of the HTTP service.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for; the history shows it.")],
    scope: Annotated[list[str], typer.Option(help=f"{', '.join(SCOPES)}; may be given several times.")],
    customer: Annotated[
        str | None, typer.Option(help="Makes it a key that may read of this customer alone.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Such as 90d; never if absent.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and show its token, this once: it is stored nowhere."""
    unknown = [one for one in scope if one not in SCOPES]
    if unknown:
        raise KeysError(f"scope: needs {', '.join(SCOPES)}, got {unknown[0]!r}")
    scopes = frozenset(known for known in SCOPES if known in scope)
    duration = _duration("expires-in", expires_in) if expires_in is not None else None
    with closing(_file()) as keys:
        token, key = keys.create(name, scopes, customer=customer, expires_in=duration)
    _show(token, key, as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """All keys, revoked ones too, without their secrets."""
    with closing(_file()) as keys:
        found = keys.list()
    if as_json:
        print_lines(msgspec.json.encode(_line(key)) for key in found)
        return
    rows = [
        (
            key.id,
            key.name,
            " ".join(sorted(key.scopes)),
            key.customer or "",
            moment(key.created_at),
            "revoked" if key.revoked_at else moment(key.expires_at) if key.expires_at else "",
        )
        for key in found
    ]
    print_table(("id", "name", "scopes", "customer", "made (UTC)", "until"), rows, "No keys.")


@app.command()
def revoke(id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Revoke a key; a running service refuses it within a tenth of a second."""
    with closing(_file()) as keys:
        key = keys.revoke(id)
    if as_json:
        print_lines([msgspec.json.encode(_line(key))])
    else:
        print(f"Key {key.id} ({key.name}) is revoked.", file=sys.stderr)


@app.command()
def rotate(
    id: Annotated[str | None, typer.Argument(metavar="[ID]")] = None,
    signing: Annotated[
        bool, typer.Option("--signing", help="Rotates what customers' tokens are signed with, not a key.")
    ] = False,
    overlap: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the earlier one is good; 0s ends it at once.")
    ] = "1h",
    as_json: AsJson = False,
) -> None:
    """Replace a key, which ends after the overlap, and show the new token, this once."""
    if (id is None) != signing:
        raise KeysError("rotate: needs the ID of a key, or --signing")
    lasts = _duration("overlap", overlap)
    with closing(_file()) as keys:
        if id is None:
            made = keys.rotate_signing(lasts)
            print(
                f"Tokens are signed by {made}; earlier ones are good for {overlap} at most.", file=sys.stderr
            )
            return
        token, key = keys.rotate(id, lasts)
    _show(token, key, as_json)
    print(f"Key {id} ends in {overlap} at most.", file=sys.stderr)


@app.command()
def prune(
    ended_for: Annotated[
        str, typer.Option(metavar="DURATION", help="Only those that ended so long ago.")
    ] = "0s",
    as_json: AsJson = False,
) -> None:
    """Delete keys that are revoked or have expired."""
    with closing(_file()) as keys:
        count = keys.prune(_duration("ended-for", ended_for))
    if as_json:
        print_lines([msgspec.json.encode({"deleted": count})])
    else:
        print(f"{count} keys are deleted.", file=sys.stderr)


def _duration(option: str, text: str) -> timedelta:
    try:
        return read_duration(text)
    except ValueError as error:
        raise KeysError(f"{option}: {error}") from None


def _show(token: str, key: ApiKey, as_json: bool) -> None:
    if as_json:
        print_lines([msgspec.json.encode({**_line(key), "token": token})])
    else:
        print(token)
        print(f"Key {key.id}; the token is not shown again.", file=sys.stderr)


def _file() -> KeyFile:
    return KeyFile(load_serving_settings().keys)


def _line(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "customer": key.customer,
        "created_at": instant(key.created_at),
        "expires_at": None if key.expires_at is None else instant(key.expires_at),
        "revoked_at": None if key.revoked_at is None else instant(key.revoked_at),
    }
