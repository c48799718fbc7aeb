"""Sends what waits in the outbox, at least once, and settles each event by what the provider says.

A `turn` picks the oldest events, makes batches, sends them and writes down what came of it. What has no clear answer
(429, 5xx, time-out, reset, an odd 200) waits on and is sent again under the same ids, after a pause that doubles, with
jitter. A refused batch is bisected. A refusal is believed only of a single event that the provider, asked, does not
have. Nothing is decided in memory: kill it anywhere, and the next one goes on from the outbox.

Events that can still go out with their own time come first, the oldest before all; every fourth turn begins with those
too old for that, so that neither starves. Ages are looked at again before each attempt.
Source: Dodo Payments, events and error handling.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from typing import Literal, NamedTuple, Protocol

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.dodo.client import Answer
from tidegate.connectors.dodo.unknown_customers import Directory, UnknownCustomers
from tidegate.connectors.outbox.outbox import Outbox, Row
from tidegate.connectors.outbox.rollup import Rollup
from tidegate.connectors.outbox.schema import State
from tidegate.operators.billing.bisection import Bisection
from tidegate.operators.billing.outgoing import (
    AGE_MAX,
    AHEAD_MAX,
    BYTES_MAX,
    EVENTS_MAX,
    MINUTE,
    SECOND,
    BillingRules,
    Late,
    Refusal,
    split_batches,
)
from tidegate.operators.billing.rollup import list_unfit_meters
from tidegate.operators.model.catalog import Catalog

# The first retries come soon, as most faults are short; the rate limit holds for them too.
PAUSE_FIRST, PAUSE_MAX = 0.1, 30.0
PAUSE_REFUSING = 60.0
BYTES_LEAST = 1 << 10
# What was just taken need not show at once.
SHOWS_AFTER = MINUTE
LOOKED_UP_AT_ONCE = 20
TRIED_WITH = 20
REQUESTS_PER_BATCH_MAX = 120
ATTEMPTS_MAX = 6
# Failed requests in a row from which the reason is reported.
FAILURES_REPORTED = 3
# So many in a row, with nothing taken between them, are no matter of single events.
REFUSALS_IN_A_ROW_MAX = 20
WATCHED_EVERY = 5 * SECOND
TIDIED_EVERY = SECOND
IDLE = 1.0

UNMAPPED, UNKNOWN_CUSTOMER = "no_billing_id", "unknown_customer"
TOO_OLD, PERIOD_CLOSED, LAST_VALUE = TIME_IS_UP = ("too_old", "period_closed", "last_value")


_log = logging.getLogger("tidegate.billing")


class Provider(Directory, Protocol):
    """What the sender asks of `client.DodoClient`."""

    def ingest(self, events: Sequence[bytes]) -> Answer: ...
    def event(self, event_id: str) -> Answer: ...
    def clock_ahead(self) -> int | None: ...


class Terms(NamedTuple):
    """How to send: how long a batch may wait to fill, what becomes of what is too old or whose customer is unknown."""

    linger: timedelta = timedelta(seconds=1)
    late: Late = "restamp"
    unmapped: Literal["park", "skip"] = "park"
    alert_age: timedelta = timedelta(minutes=20)
    events_max: int = EVENTS_MAX
    bytes_max: int = BYTES_MAX
    concurrency: int = 4
    rollup: timedelta | None = None


class Item(NamedTuple):
    """An event ready to go: its row, its bytes, the provider's customer, whether its time is left out."""

    row: Row
    body: bytes
    billing_id: str
    restamp: bool


class Stopped(Exception):
    """The sender is to end; raised out of a wait."""


class Sender:
    """Sends for one outbox. `turn` is to be called again after the seconds that it returns.

    `catalog` gives the catalog in force; `sleep` is given seconds and may raise to end a turn; `pool` runs the
    requests of a turn side by side.
    """

    def __init__(
        self,
        outbox: Outbox,
        provider: Provider,
        catalog: Callable[[], Catalog],
        terms: Terms,
        *,
        clock: Callable[[], int] = wall_clock,
        sleep: Callable[[float], object] = time.sleep,
        uniform: Callable[[], float] = random.random,
        pool: Executor | None = None,
    ) -> None:
        self._outbox, self._provider, self._catalog, self._terms = outbox, provider, catalog, terms
        self._clock, self._sleep, self._uniform, self._pool = clock, sleep, uniform, pool
        self._known_catalog: Catalog | None = None
        self._rules = BillingRules(Catalog())
        self._rollup: Rollup | None = None
        self._turns = 0
        self._tried: list[int] = []
        self._doubts: dict[int, int] = {}
        self._failures = 0
        self._unauthorized = False
        self._refusals = 0
        self._pause_until = 0
        self._bytes_max = terms.bytes_max
        self._unknown_customers = UnknownCustomers(provider, clock)
        self._watched_at = self._tidied_at = 0

    def turn(self, *, linger: bool = True) -> float | None:
        """Do what can be done now; return the seconds until there is more to do, None if nothing waits."""
        now = self._clock()
        self._follow_catalog()
        self._keep_house(now)
        self._roll_up(now)
        if now < self._pause_until:
            return (self._pause_until - now) / SECOND
        rows = self._chosen()
        if not rows:
            return None
        due = min(row.came_at for row in rows) + self._terms.linger // timedelta(microseconds=1)
        if linger and len(rows) < self._terms.events_max and now < due:
            return (due - now) / SECOND
        self._turns += 1
        self._doubts.clear()
        self._send_all(self._ready(rows))
        return 0.0

    def _chosen(self) -> list[Row]:
        """Return the rows for this turn, all of them waiting."""
        if self._unauthorized or self._failures > 1:
            return self._to_try_with()
        limit = self._terms.events_max * (1 if self._failures else self._terms.concurrency)
        first, second = self._outbox.oldest, self._outbox.too_old
        if self._turns % 4 == 3:
            first, second = second, first
        # One now for both, or an event on the edge would be in both, and twice in a request.
        now = self._clock()
        rows = first(limit, now)
        return rows if len(rows) == limit else rows + second(limit - len(rows), now)

    def _to_try_with(self) -> list[Row]:
        """Return a few rows while answers are missing, the same ones again and again, and young ones, which last.

        What was sent without an answer may have to be looked up one by one, so these are to be few.
        """
        limit = 1 if self._unauthorized else TRIED_WITH
        rows = (
            self._outbox.again(self._tried)[:limit]
            or self._outbox.youngest(limit)
            or self._outbox.too_old(limit)
        )
        self._tried = [row.seq for row in rows]
        return rows

    def _ready(self, rows: Sequence[Row]) -> list[Item]:
        """Return those that can be sent; hold the others back with a reason, or look them up first."""
        now = self._clock()
        items: list[Item] = []
        kept: dict[tuple[State, str, str], list[Row]] = {}
        doubtful: list[tuple[Row, State, Refusal]] = []
        trimmed = 0
        for row in self._without_early(rows, now):
            if row.reason:
                doubtful.append((row, State.refused, Refusal(row.reason, row.detail)))
                continue
            found, left_out = self._judge(row, now)
            trimmed += left_out
            if isinstance(found, Item):
                items.append(found)
            elif found[1] in TIME_IS_UP and row.unsure_at is not None:
                doubtful.append((row, found[0], Refusal(*found[1:])))
            else:
                kept.setdefault(found, []).append(row)
        with self._outbox.transaction():
            for (state, reason, detail), those in kept.items():
                self._outbox.keep_back(those, state, reason, detail)
            self._outbox.count(trimmed=trimmed)
        for row, state, refusal in doubtful[:LOOKED_UP_AT_ONCE]:
            self._settle_doubtful(row, state, refusal)
        return items

    def _without_early(self, rows: Sequence[Row], now: int) -> Sequence[Row]:
        """Hold what lies too far ahead for a provider whose clock is behind; return the others."""
        behind = -min(self._provider.clock_ahead() or 0, 0)
        early = [row for row in rows if row.at > now - behind + AHEAD_MAX]
        for row in early:
            self._outbox.hold([row], row.at - AHEAD_MAX + behind)
        return [row for row in rows if row not in early] if early else rows

    def _judge(self, row: Row, now: int) -> tuple[Item | tuple[State, str, str], int]:
        """Return the event as it can be sent now, or its outcome and why; and the number of properties left out."""
        billing_id = self._rules.find_billing_id(row.customer)
        if billing_id is None:
            state = State.parked if self._terms.unmapped == "park" else State.skipped
            return (state, UNMAPPED, "its customer has no billing_id in the catalog"), 0
        if self._unknown_customers.is_stranger(billing_id):
            return (State.parked, UNKNOWN_CUSTOMER, f"the provider has no customer {billing_id}"), 0
        ahead = self._provider.clock_ahead()
        restamp = now + max(ahead or 0, 0) - row.at > AGE_MAX
        if restamp and self._terms.late == "park":
            return (State.parked, TOO_OLD, "older than 55 minutes, and late=park"), 0
        if restamp and self._rules.is_ordered(row.body):
            words = (
                "older than 55 minutes, and a last meter reads it: at a later time it would hide newer values"
            )
            return (State.parked, LAST_VALUE, words), 0
        if restamp and not self._rules.may_restamp(row.customer, row.at, now, ahead):
            words = "older than 55 minutes, and its billing period has closed, or does within minutes"
            return (State.parked, PERIOD_CLOSED, words), 0
        made = self._rules.build_event(row.id, billing_id, row.at, row.body, restamp=restamp)
        if isinstance(made, Refusal):
            # It may go once the catalog reads less of it, unlike what the provider itself turns down.
            return (State.refused, made.reason, made.detail), 0
        return Item(row, made.body, billing_id, restamp), made.trimmed

    def _send_all(self, items: Sequence[Item]) -> None:
        sizes = [len(item.body) for item in items]
        parts = [items[part] for part in split_batches(sizes, self._terms.events_max, self._bytes_max)]
        if self._pool and len(parts) > 1:
            list(self._pool.map(self._deliver, parts))
        else:
            for part in parts:
                self._deliver(part)

    def _deliver(self, items: Sequence[Item]) -> None:
        if self._clock() < self._pause_until:
            # Another batch of this turn has found out that it is better to wait.
            return
        answer, sent = self._send(items)
        if answer.kind in ("refused", "too_large"):
            self._bisect(sent, answer)

    def _send(self, items: Sequence[Item]) -> tuple[Answer, list[Item]]:
        """One request with those that are still fit for it. What is certain is settled; pauses are set."""
        now = self._clock()
        fit = [item for item in items if self._fits(item, now)]
        if not fit:
            return Answer(None), fit
        rows = [item.row for item in fit]
        with self._outbox.transaction(durable=True):
            self._outbox.sending(rows, [item.row for item in fit if item.restamp])
            again = sum(row.sent_at is not None for row in rows)
            self._outbox.count(requests=1, sent=len(rows), retried=again)
        answer = self._provider.ingest([item.body for item in fit])
        self._note(answer)
        if answer.kind == "ok":
            with self._outbox.transaction():
                self._outbox.acknowledge(rows)
                self._outbox.count(restamped=sum(item.restamp for item in fit))
        elif answer.kind == "too_large":
            # The provider's own limit is below ours, so later batches keep to half of what was too large.
            self._bytes_max = min(self._bytes_max, max(sum(len(item.body) for item in fit) // 2, BYTES_LEAST))
            self._outbox.not_taken(map(self._as_known, rows))
        elif answer.kind in ("limited", "unauthorized", "unreached") or (
            answer.kind == "refused" and len(fit) == 1
        ):
            self._outbox.not_taken(map(self._as_known, rows))
        else:
            # Of a refused batch, too, some may have been taken.
            self._doubts.update((row.seq, now) for row in rows)
        return answer, fit

    def _as_known(self, row: Row) -> Row:
        """Return the row with what earlier attempts of this turn add to it."""
        return row._replace(unsure_at=self._doubts.get(row.seq, row.unsure_at))

    def _fits(self, item: Item, now: int) -> bool:
        row = item.row
        ahead = self._provider.clock_ahead()
        if item.restamp:
            return self._rules.may_restamp(row.customer, row.at, now, ahead)
        there = now + (ahead or 0)
        return there - AGE_MAX <= row.at <= there + AHEAD_MAX

    def _note(self, answer: Answer) -> None:
        """Count an answer, and set when to continue after it."""
        kind = answer.kind
        self._outbox.count(**{f"answers_{kind}": 1})
        if kind == "ok":
            self._failures = self._refusals = 0
            self._unauthorized = False
            for alert in ("unauthorized", "refusing", "unreachable"):
                self._outbox.alert(alert, None)
        elif kind == "unauthorized":
            self._unauthorized = True
            text = f"the provider refuses the API key ({answer}); nothing is sent until it works, all of it is kept"
            self._outbox.alert("unauthorized", text)
        elif kind in ("unreached", "unknown"):
            self._report_unreachable(answer)
        if kind not in ("ok", "refused", "too_large"):
            self._pause(answer)

    def _report_unreachable(self, answer: Answer) -> None:
        """Raise an alert with the reason once answers fail in a row; one alone may be chance."""
        if self._failures + 1 < FAILURES_REPORTED:
            return
        what = "cannot be reached" if answer.kind == "unreached" else "gives no usable answer"
        text = f"the provider {what} ({answer}); nothing is lost, events wait and are sent again"
        if self._outbox.alert("unreachable", text):
            _log.error("billing: %s", text)

    def _pause(self, answer: Answer) -> None:
        self._failures += 1
        pause = min(PAUSE_MAX, PAUSE_FIRST * 2.0 ** min(self._failures, 10)) * self._uniform()
        pause = max(pause, answer.retry_after or 0.0)
        self._pause_until = self._clock() + int(pause * SECOND)

    def _bisect(self, items: Sequence[Item], answer: Answer) -> None:
        """Send the accepted events of a refused batch and settle the others, within bounds of requests and time."""
        bisection = Bisection(items)
        requests = failed = 0
        while piece := bisection.next_batch():
            if requests:
                if not all(self._fits(item, self._clock()) for item in piece):
                    bisection.exclude({i for i in items if not self._fits(i, self._clock())})
                    continue
                answer, _ = self._send(piece)
            requests += 1
            match answer.kind:
                case "ok":
                    bisection.report("good")
                case "refused" | "too_large":
                    bisection.report("bad" if answer.kind == "refused" else "too_large")
                    if len(piece) == 1:
                        gone = self._settle_refused(piece[0], answer, items)
                        bisection.exclude(gone)
                case _:
                    failed += 1
                    if failed == ATTEMPTS_MAX or self._unauthorized:
                        return
                    self._sleep(max(self._pause_until - self._clock(), 0) / SECOND)
            if requests == REQUESTS_PER_BATCH_MAX or self._clock() < self._pause_until:
                # What is left waits as before, without those that were found.
                return

    def _settle_refused(self, item: Item, answer: Answer, others: Iterable[Item]) -> set[Item]:
        """Decides on an event that was refused alone; which of the others need not be sent any more."""
        self._refusals += 1
        if self._refusals >= REFUSALS_IN_A_ROW_MAX:
            text = f"the provider refuses one event after the other, the last with {answer}; they are dead letters"
            self._outbox.alert("refusing", text)
            self._pause_until = self._clock() + int(PAUSE_REFUSING * SECOND)
        who = self._unknown_customers.find_state(item.billing_id)
        if who == "unknown":
            gone = {other for other in others if other.billing_id == item.billing_id}
            self._outbox.keep_back(
                [other.row for other in gone],
                State.parked,
                UNKNOWN_CUSTOMER,
                f"the provider has no customer {item.billing_id}",
            )
            return gone
        reason = "too_large" if answer.kind == "too_large" else "refused_by_platform"
        row, now = self._as_known(item.row), self._clock()
        if not answer.is_own:
            # A proxy's limit may be raised; the event is tried again until it is too old.
            self._outbox.hold([row], now + SHOWS_AFTER)
        elif who == "unclear" or (row.unsure_at is not None and row.unsure_at > now - SHOWS_AFTER):
            self._outbox.suspect(row, now + SHOWS_AFTER, reason, str(answer))
        elif self._is_missing(row):
            self._outbox.keep_back([row], State.refused, reason, str(answer))
        return set()

    def _settle_doubtful(self, row: Row, state: State, refusal: Refusal) -> None:
        """Hold back an event that may have arrived, unless the provider turns out to have it."""
        if not self._is_missing(row):
            return
        billing_id = self._rules.find_billing_id(row.customer) if state is State.refused else None
        match self._unknown_customers.find_state(billing_id) if billing_id else "known":
            case "known":
                self._outbox.keep_back([row], state, *refusal)
            case "unknown":
                self._outbox.keep_back(
                    [row], State.parked, UNKNOWN_CUSTOMER, f"the provider has no customer {billing_id}"
                )
            case "unclear":
                self._outbox.hold([row], self._clock() + SHOWS_AFTER)

    def _is_missing(self, row: Row) -> bool:
        """Whether the provider does not have the event for sure. If it has it is acknowledged, else asked later."""
        now = self._clock()
        if row.unsure_at is not None and now - row.unsure_at < SHOWS_AFTER:
            self._outbox.hold([row], row.unsure_at + SHOWS_AFTER)
            return False
        answer = self._provider.event(row.id)
        self._outbox.count(lookups=1)
        if answer.kind == "ok":
            self._outbox.acknowledge([row])
        elif not answer.is_missing:
            self._outbox.hold([row], now + SHOWS_AFTER)
        return answer.is_missing

    def _follow_catalog(self) -> None:
        """Adopt a new catalog, and queue events again whose customer it maps."""
        catalog = self._catalog()
        if catalog is self._known_catalog:
            return
        self._known_catalog, self._rules = catalog, BillingRules(catalog)
        if self._terms.rollup is not None:
            self._rollup = Rollup(self._outbox, catalog, self._terms.rollup, self._terms.linger)
            names = list_unfit_meters(catalog)
            text = f"max and last do not add up, so these meters are not billed: {', '.join(names)}"
            self._outbox.alert("not_rolled_up", text if names else None)
        mapped = [who for who in self._outbox.parked_for(UNMAPPED) if self._rules.find_billing_id(who)]
        self._outbox.release(UNMAPPED, mapped)
        self._unknown_customers.forget()
        self._outbox.release(UNKNOWN_CUSTOMER, self._outbox.parked_for(UNKNOWN_CUSTOMER))

    def _roll_up(self, now: int) -> None:
        if self._rollup is not None:
            while self._rollup.fold(now):
                pass
            while self._rollup.emit(now):
                pass

    def _keep_house(self, now: int) -> None:
        if now - self._tidied_at >= TIDIED_EVERY and not self._outbox.tidy():
            self._tidied_at = now
        if now - self._watched_at >= WATCHED_EVERY:
            self._watched_at = now
            self._watch(now)

    def _watch(self, now: int) -> None:
        """Raise and resolve the alerts that depend on time."""
        found = self._unknown_customers.turned_up()
        if found is not None:
            parked = self._outbox.parked_for(UNKNOWN_CUSTOMER)
            self._outbox.release(
                UNKNOWN_CUSTOMER, [who for who in parked if self._rules.find_billing_id(who) == found]
            )
        age = self._terms.alert_age
        text = (
            f"events wait that are older than {age}; after 55 minutes they cannot be billed at their own time"
        )
        limit = now - age // timedelta(microseconds=1)
        self._outbox.alert("old", text if self._outbox.waits_since_before(limit, now - MINUTE) else None)
        used = self._outbox.used()
        for kind, most in (("half_full", 0.5), ("nearly_full", 0.8)):
            text = f"the outbox holds more than {most:.0%} of the bytes that it may; at 100% the flow stops"
            self._outbox.alert(kind, text if used >= most else None)
        kept = self._outbox.kept_back()
        text = "events are held back for review: tidegate outbox list"
        self._outbox.alert("kept_back", text if kept else None)
