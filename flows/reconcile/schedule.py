"""Reconciliation runs over all subscriptions, as a source: what to compare next, until the run has ended.

A run asks for meters and subscriptions once, then hands out one task per subscription. What was found off is compared
once more at the run's end, when the provider had time to show what it had. How far a run is, is in the book
(connectors/reconciliation/findings.py), so one that was killed goes on with what is left of it.
"""

import logging
from collections.abc import Callable
from datetime import timedelta

import msgspec

from tidegate.connectors.dodo.client import DodoError
from tidegate.connectors.dodo.reads import DodoReads
from tidegate.connectors.engine import FixedPartitionedSource, StatefulSourcePartition
from tidegate.connectors.reconciliation.findings import Book, Task
from tidegate.flows.runtime.error_logging import log_errors
from tidegate.operators.billing.provider import ProviderMeter, Subscription, to_micros
from tidegate.settings.reconciliation import ReconciliationSettings

SECOND = 1_000_000
TASKS_AT_ONCE = 20
# A wait is made of short ones, so that Ctrl-C is heard.
SLICE_S = 1.0
AGAIN_AFTER_S = 60.0
# Periods that ended before are settled; nobody acts on them by machine.
LOOKED_BACK = 35 * 24 * 3600 * SECOND
LOOKED_AT = ("active", "on_hold", "past_due", "paused", "cancelled", "expired")

_log = logging.getLogger("tidegate.reconciliation")


class Passes(FixedPartitionedSource[Task, None]):
    """One partition: tasks as they fall due.

    `began` is called with the subscriptions and meters of a run before it begins, `ended` with its number when it has
    ended.
    """

    def __init__(
        self,
        settings: ReconciliationSettings,
        book: Book,
        reads: DodoReads,
        began: Callable[[list[Subscription], list[ProviderMeter]], None],
        ended: Callable[[int], None],
        clock: Callable[[], int],
        sleep: Callable[[float], object],
    ) -> None:
        self._given = (settings, book, reads, began, ended, clock, sleep)

    def list_parts(self) -> list[str]:
        return ["subscriptions"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_Partition":
        return _Partition(*self._given)


class _Partition(StatefulSourcePartition[Task, None]):
    def __init__(
        self,
        settings: ReconciliationSettings,
        book: Book,
        reads: DodoReads,
        began: Callable[[list[Subscription], list[ProviderMeter]], None],
        ended: Callable[[int], None],
        clock: Callable[[], int],
        sleep: Callable[[float], object],
    ) -> None:
        self._settings, self._book, self._reads = settings, book, reads
        self._began, self._ended, self._clock, self._sleep = began, ended, clock, sleep
        self._handed_out: set[tuple[int, int, str]] = set()
        self._went_round = False

    @log_errors
    def next_batch(self) -> list[Task]:
        now = self._clock()
        found = self._book.under_way()
        if found is None:
            self._begin(now)
            return []
        number = found[0]
        if tasks := self._new(self._book.tasks(now, TASKS_AT_ONCE)):
            return tasks
        due_at = self._book.due_at()
        if due_at is not None:
            self._wait(due_at - now)
        elif self._book.prove(number, now):
            pass
        elif not self._book.look_again(number, now + _micros(self._settings.reconcile_settle)):
            self._end(number, now)
        return []

    def snapshot(self) -> None:
        return None

    def _new(self, tasks: list[Task]) -> list[Task]:
        """Those that are not under way."""
        new = [task for task in tasks if _key(task) not in self._handed_out]
        self._handed_out.update(map(_key, new))
        return new

    def _begin(self, now: int) -> None:
        """Begin a run if one is due; a provider that does not answer is asked again, unless once is all."""
        once = self._settings.reconcile_once
        if once and self._went_round:
            raise StopIteration
        last = self._book.last_started_at()
        due_at = now if once or last is None else last + _micros(self._settings.reconcile_every)
        if due_at > now:
            self._wait(due_at - now)
            return
        try:
            before = self._reads.requests
            meters = [*self._reads.meters(), *self._reads.archived_meters()]
            subscriptions = self._reads.subscriptions()
        except DodoError as error:
            if once:
                raise
            _log.error("no pass can begin: %s", error)
            self._wait(int(AGAIN_AFTER_S * SECOND))
            return
        self._began(subscriptions, meters)
        wanted = [one for one in subscriptions if self._is_looked_at(one, now)]
        number = self._book.begin(now, wanted, msgspec.json.encode(meters))
        self._book.count(number, {"requests": self._reads.requests - before})
        self._handed_out.clear()

    def _is_looked_at(self, one: Subscription, now: int) -> bool:
        """Whether a subscription has, or lately had, usage to be billed."""
        ended = (
            one.status in ("cancelled", "expired") and to_micros(one.next_billing_date) < now - LOOKED_BACK
        )
        return one.status in LOOKED_AT and not ended

    def _end(self, number: int, now: int) -> None:
        self._book.end(number, now, now - LOOKED_BACK)
        self._went_round = True
        self._ended(number)

    def _wait(self, us: int) -> None:
        self._sleep(min(max(us / SECOND, 0.001), SLICE_S))


def meters_of(book: Book) -> list[ProviderMeter]:
    """Return the provider's meters as the current run found them."""
    found = book.under_way()
    return msgspec.json.decode(found[1], type=list[ProviderMeter]) if found else []


def _key(task: Task) -> tuple[int, int, str]:
    return task.number, task.round, task.id


def _micros(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)
