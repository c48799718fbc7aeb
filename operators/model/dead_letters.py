"""Dead letters where they lie, whatever file or table that is: seen, retried and dropped by one interface."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from tidegate.operators.model.errors import TidegateError

LetterState = Literal["open", "parked", "refused", "retried", "adjusted", "dropped"]
HELD: Final[frozenset[LetterState]] = frozenset({"open", "parked", "refused"})
"""What is not dealt with: a reject of the flow, usage that is held back for review, usage that the provider refused."""

ADJUSTABLE: Final = frozenset({"too_late", "conflict"})
"""Reasons of which nobody knows whether the event was counted; an operator does, and an adjustment says so."""


class DeadLetterError(TidegateError):
    """A dead letter cannot be read or dealt with as asked; says what to do."""


class LetterAct(NamedTuple):
    """What was done about a dead letter last: when (RFC 3339), by whom and why."""

    at: str
    by: str
    why: str


class HeldLetter(NamedTuple):
    """A dead letter as its place holds it.

    `place` names the file or table, for people. `payload` is the event's own bytes, None where they are let go of.
    `customer` and `at`, the event's own time, are empty where the payload does not say them; `received_at` where it is
    not known any more. Times are RFC 3339. `act` is None for one that was not dealt with.
    """

    place: str
    id: str
    customer: str
    at: str
    reason: str
    detail: str
    payload: bytes | None
    received_at: str
    state: LetterState
    act: LetterAct | None = None


Send = Callable[[Sequence[HeldLetter]], None]
"""Sends letters to where they are judged or counted; sending one twice counts it once."""


class DeadLetterPlace(Protocol):
    """One file or table of dead letters, and what was done about them. Raises TidegateError.

    Acts are of a letter's id. They are durable on return, and never delete a letter that somebody may still bill. A
    process that is killed leaves a letter held, or dealt with and recorded as such; never dealt with unseen.
    """

    name: str
    sends_itself: bool
    """Whether a retry needs no `send`: what waits here goes out by itself."""

    def letters(self, reason: str | None = None, *, every: bool = False) -> Iterator[HeldLetter]:
        """Return those that are held, for one reason or for any, or `every` one that is still known; oldest first."""
        ...

    def find(self, ids: Iterable[str]) -> dict[str, HeldLetter]:
        """Return what is known by these ids, or by the one id that begins so, also where it is dealt with.

        Raises:
            DeadLetterError: several ids begin so, and none is it.
        """
        ...

    def retry(
        self,
        ids: Sequence[str],
        *,
        by: str,
        why: str,
        send: Send | None = None,
        state: LetterState = "retried",
    ) -> list[str]:
        """Send letters again, and return whose state this made `state`. `send` is called before it is recorded."""
        ...

    def drop(self, ids: Sequence[str], *, by: str, why: str) -> list[str]:
        """Give letters up for good, and return which were given up."""
        ...

    def count(self) -> dict[str, int]:
        """Return how many are held for each reason."""
        ...


def pick_by_prefix(wanted: Iterable[str], letters: Iterable[HeldLetter]) -> dict[str, HeldLetter]:
    """Return for each wanted id the first letter that has it, else that has the only id which begins so.

    Raises:
        DeadLetterError: several ids begin so, and none is it.
    """
    asked = list(wanted)
    found: dict[str, HeldLetter] = {}
    other: dict[str, HeldLetter] = {}
    for letter in letters:
        for id in asked:
            if not letter.id.startswith(id):
                continue
            known = found.setdefault(id, letter)
            if letter.id == id != known.id:
                found[id] = letter
            elif known.id not in (id, letter.id):
                other[id] = letter
    for id, letter in other.items():
        if found[id].id != id:
            raise DeadLetterError(f"dead letter {id!r}: fits {found[id].id} and {letter.id}; give more of it")
    return found
