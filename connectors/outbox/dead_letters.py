"""Usage that the provider refused, or that is held back for review, as dead letters: rows of the outbox.

An act and its record are one transaction. What was sent again or given up is known by the record of acts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.outbox import operator_actions
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.reader import ActRecord, Entry, OutboxReader
from tidegate.connectors.outbox.schema import State
from tidegate.operators.model.dead_letters import HeldLetter, LetterAct, LetterState, Send, pick_by_prefix
from tidegate.operators.model.wire import format_instant

LISTED_MAX = 100_000


class OutboxDeadLetters:
    """What the outbox at `path` holds back. Without an outbox there is none, and none is made.

    `unfolded` says that its usage is rolled up (connectors/outbox/outbox.py).
    """

    sends_itself = True

    def __init__(self, path: Path, *, unfolded: bool = False, clock: Callable[[], int] = wall_clock) -> None:
        self._path, self._unfolded, self._clock = path, unfolded, clock
        self.name = f"outbox:{path}"

    def letters(self, reason: str | None = None, *, every: bool = False) -> Iterator[HeldLetter]:
        if not self._path.is_file():
            return
        with closing(OutboxReader(self._path)) as reader:
            if every:
                yield from (self._dealt_with(*one) for one in reader.dealt_with(LISTED_MAX, reason))
            for entry in reader.held_back(None, reason, LISTED_MAX):
                yield self._held(entry)

    def find(self, ids: Iterable[str]) -> dict[str, HeldLetter]:
        wanted = list(ids)
        if not wanted or not self._path.is_file():
            return {}
        with closing(OutboxReader(self._path)) as reader:
            known = [self._held(entry) for entry in reader.held_back_as(wanted)]
            held = {letter.id for letter in known}
            dealt = (self._dealt_with(*one) for one in reader.dealt_with(LISTED_MAX))
            known += [letter for letter in dealt if letter.id not in held]
        return pick_by_prefix(wanted, known)

    def retry(
        self,
        ids: Sequence[str],
        *,
        by: str,
        why: str,
        send: Send | None = None,
        state: LetterState = "retried",
    ) -> list[str]:
        assert send is None and state == "retried", "what waits in an outbox goes out by itself"
        if not self._path.is_file():
            return []
        with closing(self._outbox()) as outbox:
            return operator_actions.retry(outbox, ids, by=by, why=why)

    def drop(self, ids: Sequence[str], *, by: str, why: str) -> list[str]:
        if not self._path.is_file():
            return []
        with closing(self._outbox()) as outbox:
            return operator_actions.drop(outbox, ids, by=by, why=why)

    def count(self) -> dict[str, int]:
        if not self._path.is_file():
            return {}
        counts: dict[str, int] = {}
        with closing(OutboxReader(self._path)) as reader:
            for (_, reason), count in reader.reasons().items():
                counts[reason] = counts.get(reason, 0) + count
        return counts

    def _outbox(self) -> Outbox:
        return Outbox(self._path, unfolded=self._unfolded, clock=self._clock)

    def _held(self, entry: Entry) -> HeldLetter:
        state: LetterState = "parked" if entry.state == State.parked else "refused"
        times = format_instant(entry.at), format_instant(entry.came_at)
        return HeldLetter(
            self.name,
            entry.id,
            entry.customer,
            times[0],
            entry.reason,
            entry.detail,
            entry.body,
            times[1],
            state,
        )

    def _dealt_with(self, act: ActRecord, entry: Entry | None) -> HeldLetter:
        state: LetterState = "retried" if act.act == "retry" else "dropped"
        done = LetterAct(format_instant(act.at), act.by, act.why)
        if entry is None:
            return HeldLetter(self.name, act.id, "", "", "", "", None, "", state, done)
        return self._held(entry)._replace(state=state, act=done)
