"""Which connections there may be: how many in all and of one address, and who has to go when there are too many.

A connection that has sent no whole head yet, or is idle, waits. When there is no place, the one that waits longest is
closed for the new one, of the address that holds most: so a client that opens connections and says nothing takes places
from nobody but itself. Only where nobody waits is a new one refused.
"""

from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network
from typing import Final, Protocol

FOREVER: Final = float("inf")
STALLED_S: Final = 30.0
"""How long a client may read nothing of what it was sent."""
DISCARDED_PER_TICK: Final = 8 << 20
"""How many bytes of all that nobody wants any more are read between two ticks; their readers come first."""
CLOSING_S: Final = 10.0
"""How long what was written last may take to leave after the close."""


class Connection(Protocol):
    """What the table needs of a connection. Times are monotonic."""

    deadline: float
    stalled_since: float
    closing_since: float

    def is_closing(self) -> bool: ...
    def expire(self) -> None: ...
    def abort(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Address:
    """The connections of one client address. `fresh` have had no request yet, `idle` have; both oldest first."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self.fresh: dict[Connection, None] = {}
        self.idle: dict[Connection, None] = {}

    def longest_waiting(self) -> Connection | None:
        return next(iter(self.fresh), None) or next(iter(self.idle), None)


class Connections:
    """All connections of a service. `note` is called with the reason whenever one is turned away or cut off."""

    def __init__(
        self,
        most: int,
        most_per_address: int,
        monotonic: Callable[[], float],
        note: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._most, self._most_per_address = most, most_per_address
        self._monotonic, self.note = monotonic, note
        self._all: set[Connection] = set()
        self._addresses: dict[str, Address] = {}
        self._discardable, self._paused = DISCARDED_PER_TICK, list[Connection]()
        self.now = monotonic()
        """Of the last tick, which is exact enough for deadlines and costs a request nothing."""

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, connection: Connection, host: str) -> Address | None:
        """Take a new connection in as one that waits; None where there is no place for it."""
        address = self._addresses.get(name := _network(host)) or Address(name)
        if address.count >= self._most_per_address and not self._evict(address, "address_full"):
            return None
        if len(self._all) >= self._most and not self._evict(self._fullest(), "full"):
            return None
        self._addresses[name] = address
        address.count += 1
        address.fresh[connection] = None
        self._all.add(connection)
        return address

    def release(self, connection: Connection, address: Address) -> None:
        """Forget a connection; once is enough, and more does no harm."""
        if connection not in self._all:
            return
        self._all.remove(connection)
        address.fresh.pop(connection, None)
        address.idle.pop(connection, None)
        address.count -= 1
        if not address.count:
            del self._addresses[address.name]

    def discard(self, connection: Connection, size: int) -> None:
        """Count bytes that are thrown away; past what is allowed the connection is read no more until the next tick."""
        self._discardable -= size
        if self._discardable < 0:
            connection.pause()
            self._paused.append(connection)

    def tick(self) -> None:
        """Let another tenth of a second begin."""
        self.now = self._monotonic()
        self._discardable = DISCARDED_PER_TICK
        paused, self._paused = self._paused, []
        for connection in paused:
            if not connection.is_closing():
                connection.resume()

    def sweep(self) -> None:
        """Cut off each connection that is past a deadline, does not read, or cannot be closed in order."""
        now = self.now
        for connection in list(self._all):
            if connection.is_closing():
                connection.closing_since = min(connection.closing_since, now)
                if now - connection.closing_since > CLOSING_S:
                    connection.abort()
            elif now - connection.stalled_since > STALLED_S:
                self.note("stalled")
                connection.abort()
            elif now > connection.deadline:
                connection.expire()

    def _fullest(self) -> Address | None:
        waiting = [one for one in self._addresses.values() if one.fresh or one.idle]
        return max(waiting, key=lambda one: one.count, default=None)

    def _evict(self, address: Address | None, why: str) -> bool:
        self.note(why)
        victim = address.longest_waiting() if address is not None else None
        if victim is None or address is None:
            return False
        self.release(victim, address)
        victim.abort()
        return True


def _network(host: str) -> str:
    """Return the address, of IPv6 its /64, all of which one machine may have."""
    if ":" not in host:
        return host
    address = IPv6Address(host)
    return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))
