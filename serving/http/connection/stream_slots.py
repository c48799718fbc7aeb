"""Places for streams: so many in all, of one key, and of one customer whatever keys are used.

A customer's keys and tokens are in browsers, which open streams as they like, so all of a customer's count together.
"""

from collections import Counter
from typing import Final

from tidegate.operators.gate.access import ApiKey
from tidegate.serving.http.problems import RETRY_AFTER_S, Problem, unavailable

NOBODY: Final = ("", "")


class Place:
    """One stream's place, until it is released; to release it again does nothing."""

    def __init__(self, places: "Places", holder: tuple[str, str]) -> None:
        self._places, self._holder, self._is_held = places, holder, True

    def release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._places.give_back(self._holder)


class Places:
    """`most` in all, `per_key` with a key, `per_customer` with the keys and tokens of one customer."""

    def __init__(self, most: int, per_key: int, per_customer: int) -> None:
        self._most, self._per_key, self._per_customer = most, per_key, per_customer
        self._held: Counter[tuple[str, str]] = Counter()
        self.taken = 0

    def take(self, key: ApiKey | None) -> Place:
        """Take a place for a stream with this key. Raises Problem of status 429 or 503 where there is none."""
        holder, most = self._quota(key)
        if self._held[holder] >= most:
            raise Problem(
                429,
                "streams",
                f"needs at most {most} streams of one {'customer' if holder[0] == 'customer' else 'key'} at a time",
                headers={"retry-after": str(RETRY_AFTER_S)},
            )
        if self.taken >= self._most:
            raise unavailable(f"{self.taken} streams are open already; one more may be in a while")
        self._held[holder] += 1
        self.taken += 1
        return Place(self, holder)

    def give_back(self, holder: tuple[str, str]) -> None:
        self.taken -= 1
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]

    def _quota(self, key: ApiKey | None) -> tuple[tuple[str, str], int]:
        if key is None:
            return NOBODY, self._most
        if key.customer is not None:
            return ("customer", key.customer), self._per_customer
        return ("key", key.id), self._per_key
