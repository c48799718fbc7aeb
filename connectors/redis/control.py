"""The flow's control log and the catalog's versions in Redis, in the slot of what belongs to no customer.

The log is a stream, whose ids are the records' positions: times of the server's clock that only grow, so that they go
on behind the old ones after the store was emptied. Catalogs are a hash by number. Nothing is ever deleted.

What `append` and `apply` return is on the server; on its disk and its replicas it is as soon as they are set up to
have it. A store that was emptied gets back the newest catalog that this process has seen, under its number, and is
filled again; records that the flow had not yet read, and older catalogs, are gone. Used by one thread at a time.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.control_records import read_record
from tidegate.connectors.redis.client import Command, Redis
from tidegate.connectors.redis.key_layout import Keys
from tidegate.connectors.redis.rebuild import Rebuilds
from tidegate.connectors.redis.scripts.common import APPEND, APPLY, PUT_BACK
from tidegate.connectors.redis.servers import Servers
from tidegate.operators.model.adjustments import is_same_request
from tidegate.operators.model.ports import (
    CatalogConflict,
    CatalogVersion,
    Control,
    ControlConflict,
    ControlRecord,
)

_LOG = logging.getLogger(__name__)

POSITION: Final = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
# Past all times, so that no rebuild under way began after it.
EVER: Final = 2**52
_VERSION: Final = msgspec.json.Decoder(CatalogVersion)


class RedisControl:
    """The control log under `prefix`. `servers` are the fields of Servers. Raises StoreError."""

    def __init__(
        self,
        *,
        prefix: str = "tidegate",
        clock: Callable[[], int] = wall_clock,
        sleep: Callable[[float], None] = time.sleep,
        **servers: Any,
    ) -> None:
        self._redis, self._keys = Redis(Servers(**servers), sleep=sleep), Keys(prefix)
        self._rebuilds = Rebuilds(self._redis, self._keys)
        self._clock = clock
        self._slot = self._keys.control_slot
        self._log = [self._keys.control(name) for name in ("log", "log-ids")]
        self._catalogs = [self._keys.control("catalogs"), self._keys.catalog_number]
        self._seen: CatalogVersion | None = None

    def append(self, record: ControlRecord) -> str:
        """As in `ports.ControlLog`."""
        append = APPEND.call(self._slot, self._log, record.id, msgspec.json.encode(record))
        position, known = self._ask(append)
        if known and not is_same_request(read_record(known), record):
            raise ControlConflict(record.id)
        return str(position.decode())

    def generation(self) -> str:
        """As in `ports.ControlLog`. A store that was emptied gets another one from who asks first."""
        meta = self._keys.control("meta")
        self._ask(Command(self._slot, ("HSETNX", meta, "generation", secrets.token_hex(8))))
        return str(self._ask(Command(self._slot, ("HGET", meta, "generation"))).decode())

    def at(self, position: str) -> Control | None:
        """Return the record at this very position; None too for what is a position in another kind of store."""
        if not POSITION.fullmatch(position):
            return None
        found = self._ask(Command(self._slot, ("XRANGE", self._log[0], position, position)))
        return _controls(found)[0] if found else None

    def after(self, position: str, limit: int = 1000) -> list[Control]:
        """Return the records past `position`, the oldest first."""
        since = f"({position}" if position else "-"
        found = self._ask(Command(self._slot, ("XRANGE", self._log[0], since, "+", "COUNT", limit)))
        return _controls(found)

    def resend(self, *, anew: bool = False) -> str:
        """Asks the flow to write every total again, or joins who has asked; the id of the Resend.

        Readers are kept away from what has no totals until they are back.
        """
        return self._rebuilds.fill(self._rebuilds.unmarked(), EVER if anew else 0)

    def memo(self, name: str) -> bytes | None:
        """As in `ports.ControlLog`."""
        found: bytes | None = self._ask(Command(self._slot, ("HGET", self._keys.control("meta"), name)))
        return found

    def keep(self, name: str, body: bytes) -> None:
        """As in `ports.ControlLog`."""
        self._ask(Command(self._slot, ("HSET", self._keys.control("meta"), name, body)))

    def catalog(self, number: int | None = None) -> CatalogVersion | None:
        """Return the version of this number, or the newest; None where there is none."""
        newest = self.catalog_number()
        if number in (None, newest):
            return self._seen
        return self._kept(number or 0)

    def catalog_number(self) -> int:
        """Return the newest version's number, 0 before the first. One round trip, unless there is a new one."""
        number = int(self._ask(Command(self._slot, ("GET", self._catalogs[1]))) or 0)
        seen = self._seen.number if self._seen else 0
        if number > seen:
            self._seen = self._kept(number)
        return self._put_back() if number < seen else number

    def _put_back(self) -> int:
        """Give an emptied store its newest catalog again, request a rebuild, and return the newest number."""
        assert self._seen
        put_back = PUT_BACK.call(
            self._slot, self._catalogs, self._seen.number, msgspec.json.encode(self._seen)
        )
        number = int(self._ask(put_back))
        if unmarked := self._rebuilds.unmarked():
            rebuild = self._rebuilds.fill(unmarked)
            _LOG.warning("store %s: was emptied; rebuild %s fills it again", self._redis.servers, rebuild)
        return number

    def _kept(self, number: int) -> CatalogVersion | None:
        return version_of(number, self._ask(Command(self._slot, ("HGET", self._catalogs[0], number))))

    def catalogs(self, limit: int = 50) -> list[CatalogVersion]:
        """Return the newest versions, the newest first."""
        newest = self.catalog_number()
        numbers = range(newest, max(newest - limit, 0), -1)
        if not numbers:
            return []
        found = self._ask(Command(self._slot, ("HMGET", self._catalogs[0], *numbers)))
        versions = map(version_of, numbers, found)
        return [version for version in versions if version]

    def apply(
        self, text: str, *, origin: str, by: str, note: str = "", expected: int | None = None
    ) -> CatalogVersion:
        """Make `text`, a validated catalog, the next version; CatalogConflict where `expected` is not the newest."""
        fields = {
            "number": 0,
            "text": text,
            "applied_at": self._clock(),
            "origin": origin,
            "by": by,
            "note": note,
        }
        version = msgspec.convert(fields, CatalogVersion)
        given = -1 if expected is None else expected, msgspec.json.encode(version)
        taken, number = self._ask(APPLY.call(self._slot, self._catalogs, *given))
        if not taken:
            raise CatalogConflict(number)
        self._seen = msgspec.structs.replace(version, number=number)
        return self._seen

    def close(self) -> None:
        self._redis.close()

    def _ask(self, command: Command) -> Any:
        return self._redis.run([command])[0]


def _controls(found: Any) -> list[Control]:
    """Return the entries of a stream."""
    return [Control(at.decode(), read_record(record)) for at, (_, record) in found]


def version_of(number: int, body: bytes | None) -> CatalogVersion | None:
    """Return the version as it is stored, under the number that it got."""
    return None if body is None else msgspec.structs.replace(_VERSION.decode(body), number=number)
