"""Which customers the provider knows. A typo in a catalog must cost one look-up, not a refusal for each event."""

from collections.abc import Callable
from typing import Literal, Protocol

from tidegate.connectors.dodo.client import Answer
from tidegate.operators.billing.outgoing import MINUTE

STRANGER_FOR = 10 * MINUTE
REMEMBERED = 100_000

CustomerState = Literal["known", "unknown", "unclear"]


class Directory(Protocol):
    """What is asked of `client.DodoClient`."""

    def customer(self, customer_id: str) -> Answer: ...


class UnknownCustomers:
    """Asks for customers, and remembers those who are there, and for ten minutes those who are not."""

    def __init__(self, directory: Directory, clock: Callable[[], int]) -> None:
        self._directory, self._clock = directory, clock
        self._known: set[str] = set()
        self._until: dict[str, int] = {}

    def find_state(self, billing_id: str) -> CustomerState:
        """Return what the provider says of a customer; it is asked once about those it knows."""
        if billing_id in self._known:
            return "known"
        answer = self._directory.customer(billing_id)
        if answer.is_missing:
            self._until[billing_id] = self._clock() + STRANGER_FOR
            return "unknown"
        if answer.kind != "ok":
            return "unclear"
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known.add(billing_id)
        return "known"

    def is_stranger(self, billing_id: str) -> bool:
        """Whether the provider said so lately."""
        return self._until.get(billing_id, 0) > self._clock()

    def turned_up(self) -> str | None:
        """Ask again for one whom the provider did not have long enough ago; return who it is, if it has now."""
        now = self._clock()
        due = next((who for who, until in self._until.items() if until <= now), None)
        if due is None:
            return None
        self._until[due] = now + STRANGER_FOR
        if self.find_state(due) != "known":
            return None
        del self._until[due]
        return due

    def forget(self) -> None:
        """Has each stranger asked for again, as another catalog may have meant another one."""
        self._until.clear()
