"""How commands print: tables for people, one JSON object a line for programs."""

import getpass
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Annotated

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.operators.model.errors import TidegateError

# Wide enough for any number: what is cut off in a pipe is lost.
PIPE_COLUMNS = 400

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]


class Failed(TidegateError):
    """A command cannot go on; says why, and what to do."""


def user_name() -> str:
    """Return who runs the command, for the record."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def print_lines(lines: Iterable[bytes]) -> None:
    rest: Iterator[bytes] = iter(lines)
    while block := list(islice(rest, 1000)):
        sys.stdout.buffer.write(b"\n".join(block) + b"\n")
    sys.stdout.buffer.flush()


def print_done(as_json: bool, text: str, **fields: object) -> None:
    """Print what a command did: a sentence for people, an object for programs."""
    if as_json:
        print_lines([msgspec.json.encode(fields)])
    else:
        print(text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> None:
    """Print a table, or a sentence if it would be empty."""
    shown = table(*columns)
    for row in rows:
        shown.add_row(*map(Text, row))
    console().print(shown if rows else nothing)


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)


def table(*columns: str) -> Table:
    """Columns of text, and of numbers where the heading ends in `>`."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.endswith(">")
        made.add_column(
            column.rstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    return made
