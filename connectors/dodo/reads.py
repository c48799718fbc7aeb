"""What reconciliation and `tidegate catalog pull` read of Dodo Payments, page by page, within a budget of its own.

Pages are asked for by hand, from 0 until one is not full. Pages are counted from the newest event, so they shift while
events arrive. What can still grow is therefore read until two readings agree; what lies more than 65 minutes back
cannot, as the provider takes nothing that old.

Failures are retried for a bounded time, with jitter; what is left is DodoError, and Unauthorized where the key is
refused. Source: Dodo Payments, API reference; openapi 1.53.2.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from tidegate.connectors.dodo.client import Answer, DodoClient, DodoError, part
from tidegate.operators.billing.provider import (
    CreditKind,
    Cycle,
    LedgerEntry,
    ListedEvent,
    Payment,
    ProviderMeter,
    Subscription,
    to_micros,
)
from tidegate.operators.model.wire import format_instant

ATTEMPTS_MAX = 6
PAUSE_FIRST, PAUSE_MAX = 1.0, 30.0
SECOND = 1_000_000
# A full hour, the five minutes that clocks may be ahead, and a second of which nobody says to which side it belongs.
CLOSED_AFTER = 65 * 60 * SECOND
OVERLAP = SECOND
READINGS_MAX = 5
PAGE = 100
# 200,000 events: half an hour of a whole budget. Larger ones are told, not listed.
PAGES_MAX = 2000

Record = TypeVar("Record")


class Unauthorized(DodoError):
    """The key is refused: nothing else can be read either."""


class TooMany(DodoError):
    """There are more events than are worth listing."""


class Entered(NamedTuple):
    """A ledger entry: whether it is new, and what the provider said of it."""

    is_new: bool
    answer: str


class DodoReads:
    """Reads through `client`, which paces them. `requests` counts what was asked, retries and all."""

    def __init__(
        self,
        client: DodoClient,
        *,
        sleep: Callable[[float], object] = time.sleep,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._client, self._sleep, self._uniform = client, sleep, uniform
        self.requests = 0

    def meters(self) -> list[ProviderMeter]:
        """All meters that are not archived."""
        return _read(self._all("/meters"), ProviderMeter)

    def archived_meters(self) -> list[ProviderMeter]:
        """Return the meters that count no more, marked so."""
        found = _read(self._all("/meters", {"archived": "true"}), ProviderMeter)
        return [msgspec.structs.replace(meter, archived=True) for meter in found]

    def subscriptions(self, customer_id: str | None = None) -> list[Subscription]:
        """Return all subscriptions, or a customer's, in the list's short form, each once, in the order of their ids."""
        query = {} if customer_id is None else {"customer_id": customer_id}
        listed = _read(self._all("/subscriptions", query), Subscription)
        found = {one.subscription_id: msgspec.structs.replace(one, is_short=True) for one in listed}
        return [found[id] for id in sorted(found)]

    def subscription(self, id: str) -> Subscription:
        """One subscription whole, with its meters."""
        return _read([self._get(f"/subscriptions/{part(id)}")], Subscription)[0]

    def history(self, subscription_id: str) -> list[Cycle]:
        """Return the usage of each period of a subscription, the open one included if the provider has it."""
        return _read(self._all(f"/subscriptions/{part(subscription_id)}/usage-history"), Cycle)

    def payments(self, since: int) -> list[Payment]:
        """Return the payments that were made since then (µs)."""
        return _read(self._all("/payments", {"created_at_gte": format_instant(since)}), Payment)

    def events(self, customer_id: str, event_name: str, start: int, end: int, now: int) -> list[ListedEvent]:
        """Return the events of this name in [start, end), whatever meters count them, doubles included.

        Times are µs since the epoch. TooMany beyond 200,000.
        """
        closed = min(end, now - CLOSED_AFTER)
        found: list[ListedEvent] = []
        for begin, stop in ((start, closed), (max(start, closed), end)):
            if begin < stop:
                found += self._steady(customer_id, event_name, begin, stop, is_closed=stop == closed)
        return found

    def has_event(self, id: str) -> bool:
        """Return whether the provider has an event."""
        answer = self._tried(lambda: self._client.event(id))
        if answer.kind == "ok" or answer.is_missing:
            return answer.kind == "ok"
        raise DodoError(f"dodo: the event {id} cannot be looked up ({answer}); try again later")

    def has_customer(self, id: str) -> bool:
        """Return whether the provider has a customer."""
        answer = self._tried(lambda: self._client.customer(id))
        if answer.kind == "ok" or answer.is_missing:
            return answer.kind == "ok"
        raise DodoError(f"dodo: the customer {id} cannot be looked up ({answer}); try again later")

    def credit_places(self, entitlement_id: str) -> int:
        """Return how many decimal places amounts of this entitlement have."""
        path = f"/credit-entitlements/{part(entitlement_id)}"
        return _read([self._get(path)], CreditKind)[0].precision

    def ledger(self, entitlement_id: str, customer_id: str, start: int) -> list[LedgerEntry]:
        """Return a customer's credit ledger since `start` (µs); nothing where there is no balance yet."""
        path = f"/credit-entitlements/{part(entitlement_id)}/balances/{part(customer_id)}"
        balance = self._tried(lambda: self._client.get(path))
        if balance.is_missing:
            return []
        return _read(self._all(f"{path}/ledger", {"start_date": format_instant(start)}), LedgerEntry)

    def enter(self, entitlement_id: str, customer_id: str, entry: Mapping[str, Any]) -> Entered:
        """Write one entry into a credit ledger, once for its idempotency key.

        A second try finds the key taken, which means that the first one worked.
        """
        path = f"/credit-entitlements/{part(entitlement_id)}/balances/{part(customer_id)}/ledger-entries"
        answer = self._tried(lambda: self._client.post(path, entry))
        if answer.kind == "ok" or (answer.status == 409 and answer.is_own):
            return Entered(answer.kind == "ok", str(answer))
        raise DodoError(f"dodo: the ledger entry {entry['idempotency_key']} was not taken ({answer})")

    def _steady(
        self, customer_id: str, event_name: str, start: int, end: int, *, is_closed: bool
    ) -> list[ListedEvent]:
        """One reading where nothing can be added and nothing came twice; else until two agree, or what both have."""
        reading = self._reading(customer_id, event_name, start, end)
        if is_closed and len(reading) == len({event.event_id for event in reading}):
            return reading
        for _ in range(READINGS_MAX - 1):
            before, reading = reading, self._reading(customer_id, event_name, start, end)
            counts, earlier = (Counter(event.event_id for event in one) for one in (reading, before))
            if counts == earlier:
                return reading
        # What was seen was there; what shifted between pages came twice in one reading only.
        events = {event.event_id: event for event in (*before, *reading)}
        return [event for id, event in events.items() for _ in range(max(min(counts[id], earlier[id]), 1))]

    def _reading(self, customer_id: str, event_name: str, start: int, end: int) -> list[ListedEvent]:
        asked = {
            "customer_id": customer_id,
            "event_name": event_name,
            # Nobody says whether the ends are inside.
            "start": format_instant(start - OVERLAP),
            "end": format_instant(end + OVERLAP),
        }
        found = _read(self._all("/events", asked), ListedEvent)
        return [event for event in found if start <= to_micros(event.timestamp) < end]

    def _all(self, path: str, params: Mapping[str, str | int] | None = None) -> Iterator[Any]:
        for number in range(PAGES_MAX):
            page = self._get(path, {**(params or {}), "page_size": PAGE, "page_number": number})
            items = page.get("items")
            if not isinstance(items, list):
                raise DodoError(
                    f"dodo: page {number} of {path} has no items; needs an object with a list of them"
                )
            yield from items
            if len(items) < PAGE:
                return
        raise TooMany(f"dodo: {path} has more than {PAGES_MAX * PAGE:,} items; look at them by hand")

    def _get(self, path: str, params: Mapping[str, str | int] | None = None) -> dict[str, Any]:
        answer = self._tried(lambda: self._client.get(path, params))
        if answer.kind != "ok":
            raise DodoError(f"dodo: {path} cannot be read ({answer}); try again later")
        content: dict[str, Any] = answer.content
        return content

    def _tried(self, ask: Callable[[], Answer]) -> Answer:
        """Return the answer of the first attempt that has one, or of the last."""
        for attempt in range(ATTEMPTS_MAX):
            self.requests += 1
            answer = ask()
            if answer.kind == "unauthorized":
                raise Unauthorized(
                    f"dodo: the provider refuses the API key ({answer}); see TIDEGATE_DODO_API_KEY"
                )
            is_verdict = answer.is_own and answer.status in (404, 409)
            if is_verdict or answer.kind not in ("limited", "unknown", "unreached"):
                return answer
            if attempt < ATTEMPTS_MAX - 1:
                pause = min(PAUSE_MAX, PAUSE_FIRST * 2.0**attempt) * self._uniform()
                self._sleep(max(pause, answer.retry_after or 0.0))
        return answer


def _read(items: Any, record: type[Record]) -> list[Record]:
    """Convert the provider's records to this type; DodoError if they do not fit it."""
    try:
        return msgspec.convert(list(items), list[record])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise DodoError(f"dodo: needs {record.__name__} as the API describes them: {error}") from None
