"""The dead letters of a file, and what was done about them: a second file beside it, to which acts are only appended.

The letters' file belongs to the flow, which cuts it back on a resume, so nobody else writes it. An act names letters by
their id, and holds for all letters of that id: a replay repeats ids, and the same event sent again has the same one.
"""

import getpass
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from tidegate.operators.model.errors import TidegateError

Done = Literal["retried", "adjusted", "dropped"]


class LetterError(TidegateError):
    """A dead letter cannot be read or dealt with as asked; says what to do."""


class Letter(NamedTuple):
    """A dead letter: its line's number, its fields, and the event's own bytes."""

    number: int
    id: str
    reason: str
    detail: str
    received_at: str
    payload: bytes


class LetterAct(msgspec.Struct, frozen=True):
    """What somebody did about a letter."""

    at: str
    id: str
    act: Done
    by: str
    why: str


class Letters:
    """The letters in the file at `path`, read as they stand."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._acts_path = path.with_name(f"{path.name}.acts")

    def __iter__(self) -> Iterator[Letter]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                # A line without its end is still being written.
                if line.endswith(b"\n"):
                    yield self._read(number, line)

    def find(self, ids: Iterable[str]) -> dict[str, Letter]:
        """The first letter of each id that begins with one of these; LetterError where one fits several."""
        wanted = list(ids)
        found: dict[str, Letter] = {}
        for letter in self:
            for id in wanted:
                if letter.id.startswith(id):
                    known = found.setdefault(id, letter)
                    if known.id != letter.id:
                        raise LetterError(
                            f"dead letter {id!r}: fits {known.id} and {letter.id}; give more of it"
                        )
        return found

    def acts(self) -> Mapping[str, LetterAct]:
        """The last act about each letter that there was one about."""
        if not self._acts_path.exists():
            return {}
        acts = {}
        for line in self._acts_path.read_bytes().split(b"\n")[:-1]:
            act = msgspec.json.decode(line, type=LetterAct)
            acts[act.id] = act
        return acts

    def note(self, at: str, ids: Iterable[str], act: Done, why: str) -> None:
        """Appends an act for each of these; on disk when this returns."""
        lines = b"".join(
            msgspec.json.encode(LetterAct(at, id, act, getpass.getuser(), why)) + b"\n" for id in ids
        )
        fd = os.open(self._acts_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # A kill may have cut the last line short.
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                kept = os.pread(fd, size, 0).rpartition(b"\n")[0]
                os.ftruncate(fd, len(kept) + 1 if kept else 0)
            os.write(fd, lines)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _read(self, number: int, line: bytes) -> Letter:
        try:
            found = msgspec.json.decode(line, type=dict[str, Any])
            payload = found["payload"].encode() if "payload" in found else _bytes(found["payload_base64"])
            return Letter(
                number, found["id"], found["reason"], found["detail"], found["received_at"], payload
            )
        except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
            text = f"{self._path}:{number}: needs a dead letter, got {line[:-1][:40]!r}; name the right file"
        raise LetterError(text)


def _bytes(text: str) -> bytes:
    return msgspec.convert(text, bytes)
