"""`tidegate store`: what keeps a store whole."""

import sys
import time
from contextlib import closing
from datetime import timedelta
from typing import Annotated

import typer

from tidegate.operators.model.ports import StoreError
from tidegate.serving.cli.output import AsJson, print_done
from tidegate.serving.views import rebuild as rebuilding
from tidegate.settings.settings import load_settings

app = typer.Typer(help="The store of totals.", no_args_is_help=True)


@app.command()
def rebuild(
    store: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Such as redis://localhost:6379, else TIDEGATE_STORE."),
    ] = None,
    anew: Annotated[bool, typer.Option(help="Asks again, also if a rebuild is under way.")] = False,
    as_json: AsJson = False,
    wait: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="Gives up after so long without progress.")
    ] = 60,
) -> None:
    """Has the flow write every total again, and shows how far it is; ends with 1 if it does not get there.

    For a store that was emptied, lost a server, or fell back in a failover. Gates and pages are kept away from what
    has no totals until they are back.
    """
    given = {"source": "file:-"} | ({"store": store} if store is not None else {})
    address = load_settings(given).store.require()
    with closing(address.open_control()) as log, closing(address.open_reader()) as reader:
        id = rebuilding.ask(log, anew=anew)
        begun = time.monotonic()
        print(
            f"rebuild {id}: asked; the flow that runs, or the next one, writes every total", file=sys.stderr
        )
        for last in rebuilding.follow(reader, id, timedelta(seconds=wait)):
            if last.shards:
                print(f"rebuild {id}: {last.done} of {last.shards} shards", file=sys.stderr)
    if not last.over:
        raise StoreError(
            f"rebuild {id}: no progress for {wait} s; see that the flow runs, it goes on when it does"
        )
    took = time.monotonic() - begun
    if as_json:
        print_done(as_json, "", id=id, shards=last.shards, seconds=round(took, 1))
    else:
        print(f"rebuild {id}: done, {took:.1f} s", file=sys.stderr)
