"""Who may pass: keys, scopes, a customer's own, and how often."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec
from msgspec import UNSET

from tidegate.connectors.sqlite.api_keys import KeysError
from tidegate.operators.gate.access import ApiKey
from tidegate.serving.http.problems import Problem, unavailable
from tidegate.serving.http.routing import Nothing, Route

BUCKETS_MAX: Final = 100_000
HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")


class Keys(Protocol):
    """Where keys are looked up; a change is seen within a moment."""

    def find(self, token: str, monotonic: float) -> ApiKey | None: ...
    def is_good(self, key: ApiKey, monotonic: float) -> bool: ...


class Access:
    """The gatekeeper of the routes. Without `keys` anybody may do anything, from this machine."""

    def __init__(
        self, keys: Keys | None, rate: int, customer_rate: int, monotonic: Callable[[], float]
    ) -> None:
        self._keys, self._rate, self._customer_rate, self._monotonic = keys, rate, customer_rate, monotonic
        # Per key, and per customer of keys that are in browsers, the tokens that are left, and when that was.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, route: Route, headers: Mapping[str, str]) -> ApiKey | None:
        """Return the key that was shown, None where none is needed; else a Problem of status 401, 403 or 429."""
        if self._keys is None:
            _check_host(headers.get("host", ""))
            return None
        if route.scope is None:
            return None
        try:
            key = self._keys.find(_token(headers), self._monotonic())
        except KeysError as error:
            raise unavailable(str(error)) from None
        if key is None:
            raise Problem(
                401,
                "unauthenticated",
                "needs an API key that is good: Authorization: Bearer tg_…, or X-API-Key: tg_…",
                headers={"www-authenticate": 'Bearer realm="tidegate"'},
            )
        # A customer may have any number of keys and tokens, which share what one may do.
        if key.customer is None:
            self._spend(key.id, self._rate, "key")
        else:
            self._spend(f"customer {key.customer}", self._customer_rate, "customer")
        if route.scope not in key.scopes:
            raise Problem(403, "scope", f"needs an API key with the scope {route.scope}")
        return key

    def still_admits(self, key: ApiKey | None) -> bool:
        """Whether a stream that was opened with this key may go on."""
        return key is None or self._keys is None or self._keys.is_good(key, self._monotonic())

    def _spend(self, who: str, rate: int, kind: str) -> None:
        """Take a token from a bucket, which fills by `rate` a second and holds a second's worth."""
        now = self._monotonic()
        left, at = self._buckets.get(who, (rate, now))
        left = min(left + (now - at) * rate, rate)
        if left < 1:
            raise Problem(
                429,
                "rate",
                f"needs at most {rate} requests per second and {kind}",
                headers={"retry-after": "1"},
            )
        self._buckets[who] = left - 1, now
        self._buckets.move_to_end(who)
        if len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)


def own_customer(route: Route, key: ApiKey | None, path: Nothing, query: Nothing) -> Nothing:
    """Narrow the query to the key's own customer; a Problem of status 403 if it is about another."""
    if key is None or key.customer is None or route.customer == "own":
        return query
    asked: object = None
    if route.customer is not None:
        asked = getattr(path if route.customer == "path" else query, "customer")  # noqa: B009
    if route.customer == "query" and asked is UNSET:
        return msgspec.structs.replace(query, customer=key.customer)
    if asked != key.customer:
        # The same words whether or not there is such a customer.
        raise Problem(
            403, "customer", "this API key is for one customer, and for what is that customer's own"
        )
    return query


def _token(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _check_host(host: str) -> None:
    # A page on the web may have its name point here (DNS rebinding), but then the name is its own.
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name.lower() not in HOSTS:
        raise Problem(
            403, "host", "without keys it is only for this machine: call it as localhost or 127.0.0.1"
        )
