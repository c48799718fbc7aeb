"""The usage of an AI product, made up: event number `i` is a function of the seed, `i` and the start.

A minute is a day: traffic swells and ebbs. A few customers send most of it; bursts come and go; and after
twenty seconds the agent of one customer runs away, sends twenty times as much, and drives through its cap.
As in life, one event in a hundred is sent twice, some come seconds or hours late, a few are garbage.
The customers are those of examples/catalog.yaml.
"""

import hashlib
import math
import struct
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

Fate = Literal["repeated", "seconds_late", "hours_late", "malformed", "as_it_should"]

SHARE_OF: dict[Fate, float] = {
    "repeated": 0.01,
    "seconds_late": 0.02,
    "hours_late": 0.002,
    "malformed": 0.0005,
}
DODO_SHAPE = 0.05
REPEATED_WITHIN_S = 10
DAY_S = 60.0
SWELL = 0.5
BURST_EVERY_S = 5
BURST = 0.3
RUNAWAY = 3
RUNAWAY_AFTER_S = 20.0
RUNAWAY_FACTOR = 20

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1)
_ENCODE = msgspec.json.Encoder(decimal_format="number").encode
_DRAWS = struct.Struct("<16I")
_ROUTES = ("/v1/chat", "/v1/embed", "/v1/files", "/v1/search")
_MODELS = ("small-1", "large-2", "reason-1")
_STATUS = (200, 200, 200, 200, 200, 200, 201, 429, 500)
_GPUS = ("a10", "l40s", "h100")


class _Plan(NamedTuple):
    tokens: int
    users: int
    seats: int


_FREE = _Plan(tokens=60, users=2, seats=1)
_PRO = _Plan(tokens=80, users=20, seats=8)
_SCALE = _Plan(tokens=500, users=400, seats=60)
_PLANS = dict.fromkeys((1, 2, 3, 4), _PRO) | dict.fromkeys((5, 6, 7), _SCALE)
# Those without a cap send the most.
_BY_SIZE = (6, 5, 7, 1, 4, 2, 3)


@dataclass(frozen=True)
class Traffic:
    """A run: `rate` events a second of `customers` customers from `start` (µs since the epoch) on.

    Event time passes `speed` times as fast as ours; above 1 it runs ahead of the wall clock.
    """

    seed: int
    start: int
    rate: float = 200.0
    customers: int = 40
    speed: float = 1.0

    def due(self, i: int) -> int:
        """When event `i` is sent (µs since the epoch); never falls with `i`."""
        return self.start + int(self._elapsed(i) * 1e6)

    def event(self, i: int) -> bytes:
        """Return the payload of event `i`, without newline."""
        draws = _draws(self.seed, i)
        fate = _fate(next(draws))
        if fate == "repeated" and i:
            back = int(next(draws) * min(i, REPEATED_WITHIN_S * self.rate))
            return self.event(i - 1 - back)
        at = self._at(i, fate, next(draws))
        payload = self._payload(i, at, draws)
        return _spoilt(payload, next(draws)) if fate == "malformed" else payload

    def _elapsed(self, i: int) -> float:
        steady = i / self.rate
        return steady + SWELL * DAY_S / math.tau * math.sin(math.tau * steady / DAY_S)

    def _at(self, i: int, fate: Fate, draw: float) -> int:
        delay_s = 0.005 + 0.05 * draw
        if fate == "seconds_late":
            delay_s = 1 + 9 * draw
        elif fate == "hours_late":
            delay_s = 3600 * (1 + 7 * draw)
        return self.start + int((self._elapsed(i) * self.speed - delay_s) * 1e6)

    def _payload(self, i: int, at: int, draws: Iterator[float]) -> bytes:
        number = self._customer(i, draws)
        name, usage = _usage(_PLANS.get(number, _FREE), self._is_running_away(i, number), draws)
        customer = f"cus_{number:03d}"
        # With the start, for the events of another run are other events.
        identity = f"{self.start // 1000:x}-{self.seed:x}-{i:x}"
        time = (_EPOCH + timedelta(microseconds=at)).isoformat(timespec="milliseconds") + "Z"
        event: dict[str, Any]
        if next(draws) < DODO_SHAPE:
            event = {"event_id": identity, "customer_id": customer, "event_name": name}
            return _ENCODE(event | {"timestamp": time, "metadata": usage})
        event = {"specversion": "1.0", "id": identity, "source": f"/gateway/{number % 4 + 1}", "type": name}
        return _ENCODE(event | {"subject": customer, "time": time, "data": usage})

    def _customer(self, i: int, draws: Iterator[float]) -> int:
        elapsed = self._elapsed(i)
        burst, draw = next(draws), next(draws)
        turn, second = divmod(int(elapsed), BURST_EVERY_S)
        if second == 0 and burst < BURST:
            # All of a burst draw the same, hence one customer.
            draw = next(_draws(self.seed, -1 - turn))
        shares = self._runaway_shares if elapsed >= RUNAWAY_AFTER_S else self._usual_shares
        return self._numbers[bisect(shares, draw * shares[-1])]

    def _is_running_away(self, i: int, number: int) -> bool:
        return number == self._runaway and self._elapsed(i) >= RUNAWAY_AFTER_S

    @cached_property
    def _runaway(self) -> int:
        return min(RUNAWAY, self.customers)

    @cached_property
    def _numbers(self) -> list[int]:
        named = [number for number in _BY_SIZE if number <= self.customers]
        return [*named, *range(len(_BY_SIZE) + 1, self.customers + 1)]

    @cached_property
    def _usual_shares(self) -> list[float]:
        return list(accumulate(rank**-1.8 for rank in range(1, self.customers + 1)))

    @cached_property
    def _runaway_shares(self) -> list[float]:
        factors = [RUNAWAY_FACTOR if number == self._runaway else 1 for number in self._numbers]
        return list(accumulate(factor * rank**-1.8 for rank, factor in enumerate(factors, 1)))


def _draws(seed: int, i: int) -> Iterator[float]:
    """Sixteen numbers in [0, 1), the same on every machine and version."""
    digest = hashlib.blake2b(b"%d %d" % (seed, i)).digest()
    return (number / 2**32 for number in _DRAWS.unpack(digest))


def _fate(draw: float) -> Fate:
    for fate, share in SHARE_OF.items():
        if draw < share:
            return fate
        draw -= share
    return "as_it_should"


def _usage(plan: _Plan, running_away: bool, draws: Iterator[float]) -> tuple[str, dict[str, Any]]:
    """Return an event's name and properties."""
    kind, size, one, other = (next(draws) for _ in range(4))
    # Most are small and a few are large: Pareto, cut off.
    heavy = min((1 - size) ** -0.7, 100.0)
    if running_away or kind < 0.55:
        tokens = {
            "input_tokens": int(plan.tokens * heavy),
            "output_tokens": int(plan.tokens * (0.05 + 0.5 * one)),
        }
        return "llm.tokens", tokens | {"model": _of(_MODELS, other), "cached": other * 7 % 1 < 0.2}
    if kind < 0.92:
        user = f"u{int(plan.users * one * one) + 1}"
        return "api.call", {"route": _of(_ROUTES, size), "user": user, "status": _of(_STATUS, other)}
    if kind < 0.99:
        seconds = Decimal(int(400 * heavy)).scaleb(-3)
        return "gpu.run", {"seconds": seconds, "gpu": _of(_GPUS, other)}
    return "seats.set", {"seats": plan.seats + int(plan.seats * one / 2)}


def _of(choices: tuple[T, ...], draw: float) -> T:
    return choices[int(draw * len(choices))]


def _spoilt(payload: bytes, draw: float) -> bytes:
    """Damage `payload` as a broken client would, so that no reading of it is an event."""
    return _of(
        (
            payload[: len(payload) // 2],
            payload.replace(b'"subject"', b'"customer"').replace(b'"customer_id"', b'"customer"'),
            b"GET /health HTTP/1.1",
            b'{"specversion":"1.0"}',
        ),
        draw,
    )
