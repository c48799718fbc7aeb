"""The near cache: views of customers, kept without expiry, dropped by push, and used only while push is proven.

Why an answer from here is never older than `staleness`: a view is dropped when the feed tells of its customer, and
the feed proves with every round trip that it has told all that was committed before the round trip began. That
instant is `proven`. So a view that is found reflects everything committed until `proven`, and is used only while
`proven` is no further back than `staleness`. What is read while news comes in might be older than the news: it is
kept only if nothing was dropped of that customer since before it was read, which its ticket tells.

Times are monotonic seconds, given by who asks. Safe to share between threads.
"""

from collections.abc import Iterable
from threading import Lock

from tidegate.operators.gate.decision import AccountView

# A view takes about two kilobytes.
CUSTOMERS_MAX = 20_000
# Beyond this many the customers dropped are forgotten, and what is being read just then is not kept.
DROPS_MAX = 10_000
NEVER = float("-inf")


class Near:
    """Views by customer; `staleness` in seconds."""

    def __init__(self, staleness: float, customers_max: int = CUSTOMERS_MAX) -> None:
        self.staleness = staleness
        self.proven = NEVER
        self._customers_max = customers_max
        self._views: dict[str, AccountView] = {}
        self._dropped: dict[str, int] = {}
        self._all_dropped = 0
        self._drops = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._views)

    def get(self, customer: str, now: float) -> AccountView | None:
        """Return the customer's view, if there is one, and if it is proven to be right or `staleness` old at most."""
        # First, as what is proven later need not hold for a view that was dropped meanwhile.
        proven = self.proven
        view = self._views.get(customer)
        return view if view is not None and now - proven <= self.staleness else None

    def ticket(self) -> int:
        """To be taken before a view is read, and given when it is put."""
        return self._drops

    def put(self, customer: str, view: AccountView, ticket: int) -> None:
        """Keep the view, if nothing was dropped of its customer since the ticket was taken."""
        with self._lock:
            if self._all_dropped > ticket or self._dropped.get(customer, 0) > ticket:
                return
            if len(self._views) >= self._customers_max and customer not in self._views:
                del self._views[next(iter(self._views))]
            self._views[customer] = view

    def drop(self, customers: Iterable[str] | None) -> None:
        """Forgets these customers' views; None is everybody's."""
        with self._lock:
            self._drops += 1
            if customers is not None:
                for customer in customers:
                    self._dropped[customer] = self._drops
                    self._views.pop(customer, None)
            if customers is None or len(self._dropped) > DROPS_MAX:
                self._all_dropped = self._drops
                self._dropped.clear()
            if customers is None:
                self._views.clear()

    def prove(self, instant: float) -> None:
        """All that was committed before `instant` has been dropped."""
        self.proven = instant

    def lose(self) -> None:
        """Distrust all views: the feed is gone, and none is used until another feed has proven itself."""
        self.proven = NEVER
        self.drop(None)
