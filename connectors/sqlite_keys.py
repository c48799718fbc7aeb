"""API keys in one SQLite file, the secrets as digests only (operators/access.py).

Guarantees: what `create` and `revoke` return is on disk. Whoever holds a `KeyFile` sees a change of another process
within `LOOK` seconds. Limits: `KEYS_MAX` keys, as a service has them all in memory; one thread at a time.
"""

import os
import secrets
import sqlite3
from base64 import urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from connectors.clock import wall_clock
from operators.access import ID_BYTES, SECRET_BYTES, Key, Scope, check_key, is_same, parted, token_of

KEYS_MAX: Final = 100_000
LOOK: Final = 0.1
NAME_MAX: Final = 100
Rows = list[tuple[Any, ...]]
_NOBODY: Final = bytes(32)

_TABLE = """CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT, scopes TEXT, customer TEXT, digest BLOB, created_at INTEGER, expires_at INTEGER,
    revoked_at INTEGER
)"""


class KeysError(Exception):
    """The file of keys cannot be opened, read or written, or a key is not as it needs to be; says what to do."""


class KeyFile:
    """The keys in the file at `path`, made, readable by its owner alone, if it is not there. Raises KeysError."""

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Callable[[], int] = wall_clock,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._path, self._clock, self._random = Path(path), clock, random
        self._known: dict[str, Key] = {}
        self._seen = (-1, -1)
        self._look_at = float("-inf")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                # Only where there is none: to close another descriptor of a file drops the locks that SQLite has on it
                # in this process, and then the log may be taken away under a connection.
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise self._error("opened", error) from None

    def create(
        self,
        name: str,
        scopes: frozenset[Scope],
        *,
        customer: str | None = None,
        expires_in: timedelta | None = None,
    ) -> tuple[str, Key]:
        """A new key and its token, which is shown this once and kept nowhere."""
        try:
            check_key(scopes, customer)
        except ValueError as error:
            raise KeysError(str(error)) from None
        if not 0 < len(name) <= NAME_MAX or not name.isprintable():
            raise KeysError(f"name: needs 1 to {NAME_MAX} printable characters, got {name[:60]!r}")
        if len(self.list()) >= KEYS_MAX:
            raise KeysError(f"keys: there are {KEYS_MAX} already; revoke and forget some")
        token = token_of(self._random(ID_BYTES), _urlsafe(self._random(SECRET_BYTES)))
        parts = parted(token)
        assert parts is not None
        now = self._clock()
        expires_at = now + expires_in // timedelta(microseconds=1) if expires_in is not None else None
        key = Key(
            id=parts[0],
            name=name,
            scopes=scopes,
            customer=customer,
            digest=parts[1],
            created_at=now,
            expires_at=expires_at,
        )
        row = (key.id, name, " ".join(sorted(scopes)), customer, key.digest, now, expires_at, None)
        self._execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        return token, key

    def revoke(self, id: str) -> Key:
        """Ends a key for good; one that is revoked already stays as it is."""
        self._execute(
            "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (self._clock(), id)
        )
        found = {key.id: key for key in self.list()}.get(id)
        if found is None:
            raise KeysError(f"keys: there is none with the id {id[:60]!r}; `tidegate keys list` has them")
        return found

    def list(self) -> list[Key]:
        """All keys, the oldest first."""
        return [_key(row) for row in self._execute("SELECT * FROM keys ORDER BY created_at, id", ())]

    def find(self, token: str, monotonic: float) -> Key | None:
        """The key of a token, None where there is none or it is good no more; `monotonic` are seconds."""
        self._follow(monotonic)
        parts = parted(token)
        if parts is None:
            return None
        id, digest = parts
        key = self._known.get(id)
        # Compared also where there is no such key, so that ids cannot be told by the time it takes.
        if not is_same(digest, key.digest if key else _NOBODY) or key is None:
            return None
        return key if key.is_good(self._clock()) else None

    def is_good(self, key: Key, monotonic: float) -> bool:
        """Whether a key that was found before is good still."""
        self._follow(monotonic)
        known = self._known.get(key.id)
        return known is not None and known.is_good(self._clock())

    def count(self) -> int:
        """How many keys open anything by now."""
        now = self._clock()
        return sum(key.is_good(now) for key in self.list())

    def close(self) -> None:
        self._db.close()

    def _follow(self, monotonic: float) -> None:
        if monotonic < self._look_at:
            return
        self._look_at = monotonic + LOOK
        version = int(self._execute("PRAGMA data_version", ())[0][0])
        changes = self._db.total_changes
        if (version, changes) != self._seen:
            self._known = {key.id: key for key in self.list()}
            self._seen = (version, changes)

    def _execute(self, statement: str, parameters: tuple[object, ...]) -> Rows:
        try:
            return self._db.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._error("used", error) from None

    def _error(self, act: str, error: Exception) -> KeysError:
        return KeysError(f"keys {str(self._path)!r}: cannot be {act} ({error}); name another file")


def _urlsafe(secret: bytes) -> str:
    return urlsafe_b64encode(secret).rstrip(b"=").decode()


def _key(row: tuple[Any, ...]) -> Key:
    id, name, scopes, customer, digest, created_at, expires_at, revoked_at = row
    fields = {
        "id": id,
        "name": name,
        "scopes": str(scopes).split(),
        "customer": customer,
        "digest": digest,
        "created_at": created_at,
        "expires_at": expires_at,
        "revoked_at": revoked_at,
    }
    return msgspec.convert(fields, Key)
