"""Dead letters in a file, and what was done about them: a second file beside it, to which acts are only appended.

The letters' file belongs to the flow, which cuts it back on a resume, so nobody else writes it. An act names letters by
their id, and holds for all letters of that id: a replay repeats ids, and the same event sent again has the same one.
"""

import base64
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.operators.events.chunk import Reject
from tidegate.operators.events.validate import judge
from tidegate.operators.model.dead_letters import (
    HELD,
    DeadLetterError,
    HeldLetter,
    LetterAct,
    LetterState,
    Send,
    pick_by_prefix,
)
from tidegate.operators.model.periods import MAX_AT
from tidegate.operators.model.wire import format_instant

READ_MAX: Final = 4 << 20
"""How many bytes are read at once for counting. Of a file that is longer at first its end is counted."""


class _Act(msgspec.Struct, frozen=True):
    """A line of the file of acts."""

    at: str
    id: str
    act: Literal["retried", "adjusted", "dropped"]
    by: str
    why: str


class _Counted(msgspec.Struct):
    """What counting reads of a letter's line."""

    reason: str
    id: str = ""


_COUNTED: Final = msgspec.json.Decoder(_Counted).decode


class FileDeadLetters:
    """The letters in the file at `path`, read as they stand, and the acts in `path` with `.acts` behind it."""

    sends_itself = False

    def __init__(self, path: Path, clock: Callable[[], int] = wall_clock) -> None:
        self._path, self._clock = path, clock
        self._acts_path = path.with_name(f"{path.name}.acts")
        self.name = f"file:{path}"
        self._reasons: Counter[str] = Counter()
        self._offset: int | None = None
        self._acts_size = 0
        self._acted: frozenset[str] = frozenset()

    def letters(self, reason: str | None = None, *, every: bool = False) -> Iterator[HeldLetter]:
        acts = self._acts()
        for letter in self._lines(acts):
            if (every or letter.state in HELD) and reason in (None, letter.reason):
                yield letter

    def find(self, ids: Iterable[str]) -> dict[str, HeldLetter]:
        return pick_by_prefix(ids, self.letters(every=True))

    def retry(
        self,
        ids: Sequence[str],
        *,
        by: str,
        why: str,
        send: Send | None = None,
        state: LetterState = "retried",
    ) -> list[str]:
        found = self._known(ids)
        if found and send is None:
            raise DeadLetterError(
                f"dead letter {found[0].id}: cannot be sent again as it is; correct its payload and send that, or"
                " name a file that a source follows with --to"
            )
        if found and send is not None:
            send(found)
            self._note(found, state, by, why)
        return [letter.id for letter in found]

    def drop(self, ids: Sequence[str], *, by: str, why: str) -> list[str]:
        found = self._known(ids)
        self._note(found, "dropped", by, why)
        return [letter.id for letter in found]

    def count(self) -> dict[str, int]:
        """As in `DeadLetterPlace`, from what was added since the call before, at most READ_MAX bytes a call.

        Of a file that is longer at first it counts the end, and again when something was done about letters.
        """
        try:
            size = self._acts_path.stat().st_size
        except FileNotFoundError:
            size = 0
        if size != self._acts_size:
            self._acts_size, self._acted = size, frozenset(self._acts())
            self._offset = None
        try:
            self._reasons.update(self._new_reasons())
        except FileNotFoundError:
            # Made with the first dead letter.
            self._reasons.clear()
        return dict(self._reasons)

    def _known(self, ids: Sequence[str]) -> list[HeldLetter]:
        """Return the first letter of each of these very ids."""
        wanted, found = set(ids), dict[str, HeldLetter]()
        for letter in self.letters(every=True):
            if letter.id in wanted:
                found.setdefault(letter.id, letter)
        return [found[id] for id in dict.fromkeys(ids) if id in found]

    def _lines(self, acts: Mapping[str, _Act]) -> Iterator[HeldLetter]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                # A line without its end is still being written.
                if line.endswith(b"\n"):
                    yield self._read(number, line, acts)

    def _read(self, number: int, line: bytes, acts: Mapping[str, _Act]) -> HeldLetter:
        try:
            found = msgspec.json.decode(line, type=dict[str, Any])
            id, reason, detail, received_at = (
                found[name] for name in ("id", "reason", "detail", "received_at")
            )
            payload = (
                found["payload"].encode()
                if "payload" in found
                else base64.b64decode(found["payload_base64"], validate=True)
            )
            act = acts.get(id)
        except (msgspec.MsgspecError, KeyError, TypeError, AttributeError, ValueError):
            text = f"{self._path}:{number}: needs a dead letter, got {line[:-1][:40]!r}; name the right file"
            raise DeadLetterError(text) from None
        done = LetterAct(act.at, act.by, act.why) if act else None
        state: LetterState = act.act if act else "open"
        whose = customer_and_time(payload)
        return HeldLetter(self.name, id, *whose, reason, detail, payload, received_at, state, done)

    def _acts(self) -> dict[str, _Act]:
        """Return the last act about each letter that there was one about."""
        if not self._acts_path.exists():
            return {}
        acts = {}
        for number, line in enumerate(self._acts_path.read_bytes().split(b"\n")[:-1], 1):
            try:
                act = msgspec.json.decode(line, type=_Act)
            except msgspec.MsgspecError:
                raise DeadLetterError(
                    f"{self._acts_path}:{number}: needs an act, got {line[:40]!r}; put the file back from a backup, or"
                    " take the line out"
                ) from None
            acts[act.id] = act
        return acts

    def _note(self, letters: Iterable[HeldLetter], state: LetterState, by: str, why: str) -> None:
        """Append an act for each of these; on disk when this returns."""
        at = format_instant(self._clock())
        lines = b"".join(
            msgspec.json.encode({"at": at, "id": letter.id, "act": state, "by": by, "why": why}) + b"\n"
            for letter in letters
        )
        if not lines:
            return
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

    def _new_reasons(self) -> Iterator[str]:
        """Return the reasons of whole lines that are new, and not dealt with."""
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if self._offset is None or size < self._offset:
                # The flow cuts its file back when it resumes, and writes what was there again.
                self._reasons.clear()
                self._offset = max(size - READ_MAX, 0)
            file.seek(self._offset)
            whole, end, _ = file.read(READ_MAX).rpartition(b"\n")
        self._offset += len(whole) + len(end)
        for line in whole.split(b"\n") if end else ():
            counted = _counted(line)
            if counted.id not in self._acted:
                yield counted.reason


def customer_and_time(payload: bytes) -> tuple[str, str]:
    """Return whose event it is and its own time (RFC 3339); both empty where it cannot be read as an event."""
    fields = judge(payload, None, MAX_AT)
    return ("", "") if isinstance(fields, Reject) else (fields.customer, format_instant(fields.at))


def _counted(line: bytes) -> _Counted:
    try:
        return _COUNTED(line)
    except msgspec.DecodeError:
        # The part that is counted may begin within a line.
        return _Counted("other")
