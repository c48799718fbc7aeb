"""`python -m simulator`: run the provider's simulator on this machine, for development and tests."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from simulator.app import build_app
from simulator.server import serve
from simulator.state.platform import Platform
from simulator.state.storage import SqliteFile

PR_SET_PDEATHSIG = 1


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    host: Annotated[str, typer.Option(help="Where to listen; keep it on loopback.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8080,
    seed: Annotated[
        int, typer.Option(help="Draws ids and chances; a known database goes on with its own.")
    ] = 1,
    database: Annotated[
        Path | None, typer.Option(help="An SQLite file, to survive a kill; else memory.")
    ] = None,
    key: Annotated[
        str, typer.Option(help="The API key that may read and write.", envvar="SIMULATOR_KEY")
    ] = "sim_key",
    parent: Annotated[int | None, typer.Option(help="Ends with this process, which started it.")] = None,
) -> None:
    """Simulate the billing provider's metering API; print its address."""
    if parent is not None:
        _die_with(parent)
    platform = Platform(seed, key=key, storage=SqliteFile(database) if database else None)
    try:
        served, sender = build_app(platform)
        serve(served, sender.run, host, port, lambda bound: print(f"http://{host}:{bound}", flush=True))
    finally:
        platform.close()


def _die_with(parent: int) -> None:
    """Have this process killed when its parent dies, however it dies.

    This works on Linux; elsewhere only a clean end of the parent stops it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)


if __name__ == "__main__":
    app()
