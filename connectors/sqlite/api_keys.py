"""API keys in one SQLite file, the secrets as digests only (operators/gate/access.py), and what tokens are signed with.

Guarantees: what `create`, `rotate` and `revoke` return is on disk. Each holder of a `KeyFile` sees a change of another
process within `LOOK` seconds. Looking a key up reads one row by its id, once per change of the file. Services on
several machines may share the file, on a file system with locks that work between them. Limits: `KEYS_MAX` keys, of
which those that open nothing any more make room; one thread at a time.
"""

import secrets
import sqlite3
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from tidegate.connectors.clock import wall_clock
from tidegate.connectors.sqlite.files import open_file
from tidegate.connectors.sqlite.schema import Schema
from tidegate.operators.gate.access import (
    ID_BYTES,
    SECRET_BYTES,
    ApiKey,
    Scope,
    check_key,
    format_token,
    is_same_digest,
    parse_token,
)
from tidegate.operators.gate.tokens import Claims, build_key, read_token, sign_token
from tidegate.operators.model.errors import TidegateError

KEYS_MAX: Final = 100_000
KNOWN_MAX: Final = 10_000
PRUNED_AT_ONCE: Final = 1000
LOOK: Final = 0.1
WAIT: Final = timedelta(seconds=10)
READ_WAIT_MS: Final = 100
BLIND_S: Final = 2.0
NAME_MAX: Final = 100
Rows = list[tuple[Any, ...]]
_NOBODY: Final = bytes(32)

_TABLE = """CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT, scopes TEXT, customer TEXT, digest BLOB, created_at INTEGER, expires_at INTEGER,
    revoked_at INTEGER
);
CREATE INDEX IF NOT EXISTS keys_ended ON keys (expires_at);
CREATE INDEX IF NOT EXISTS keys_revoked ON keys (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS signing (id TEXT PRIMARY KEY, secret BLOB, created_at INTEGER, retires_at INTEGER);
"""


class KeysError(TidegateError):
    """The file of keys cannot be opened, read or written, or a key is not as it needs to be; says what to do."""


SCHEMA: Final = Schema(
    name="keys",
    error=KeysError,
    mark="SELECT 1 FROM sqlite_schema WHERE name = 'keys'",
    migrations=(_TABLE,),
    maker="run `tidegate keys create`",
    if_damaged="restore it from a backup, or name another file and create keys again",
    # A write-ahead log would need all that open the file on one machine.
    journal="DELETE",
)

_ENDED = """SELECT id FROM keys WHERE expires_at <= ?1
    UNION SELECT id FROM keys WHERE revoked_at IS NOT NULL AND revoked_at <= ?1 LIMIT ?2"""
_GOOD = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)"
_INSERT = "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class KeyFile:
    """The keys in the file at `path`, made, readable by its owner alone, if it is not there. Raises KeysError."""

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Callable[[], int] = wall_clock,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._clock, self._random = clock, random
        # What was looked up since the file changed last; None is for an id that there is not.
        self._known: dict[str, ApiKey | None] = {}
        self._secrets: dict[str, bytes] | None = None
        self._seen = -1
        self._look_at = self._seen_at = float("-inf")
        self._file = open_file(Path(path), SCHEMA, "rwc", wait=WAIT, pragmas={"synchronous": "FULL"})
        try:
            self._reader = open_file(Path(path), SCHEMA, "ro", wait=WAIT)
        except BaseException:
            self._file.close()
            raise
        # Of requests, which wait for the moment of a commit at most.
        self._reader.db.execute(f"PRAGMA busy_timeout = {READ_WAIT_MS}")

    def create(
        self,
        name: str,
        scopes: frozenset[Scope],
        *,
        customer: str | None = None,
        expires_in: timedelta | None = None,
    ) -> tuple[str, ApiKey]:
        """Return a new key and its token, which is shown this once and kept nowhere."""
        try:
            check_key(scopes, customer)
        except ValueError as error:
            raise KeysError(str(error)) from None
        if not 0 < len(name) <= NAME_MAX or not name.isprintable():
            raise KeysError(f"name: needs 1 to {NAME_MAX} printable characters, got {name[:60]!r}")
        now = self._clock()
        expires_at = now + expires_in // timedelta(microseconds=1) if expires_in is not None else None
        with self._file.transaction():
            self._make_room(now)
            return self._insert(name, scopes, customer, now, expires_at)

    def rotate(self, id: str, overlap: timedelta) -> tuple[str, ApiKey]:
        """Make a key like this one, which ends after the overlap; the new token and its key."""
        now = self._clock()
        with self._file.transaction():
            old = self._one(id)
            if not old.is_good(now):
                raise KeysError(f"keys: {id!r} is revoked or has expired; create another")
            self._make_room(now)
            lasts = now + old.expires_at - old.created_at if old.expires_at is not None else None
            made = self._insert(old.name, old.scopes, old.customer, now, lasts)
            ends = now + overlap // timedelta(microseconds=1)
            self._execute(
                "UPDATE keys SET expires_at = min(coalesce(expires_at, ?1), ?1) WHERE id = ?2", (ends, id)
            )
        return made

    def revoke(self, id: str) -> ApiKey:
        """End a key for good; one that is revoked already stays as it is."""
        self._execute(
            "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (self._clock(), id)
        )
        return self._one(id)

    def prune(self, ended_for: timedelta) -> int:
        """Delete keys that were revoked or expired so long ago, some at a time so that nobody waits; how many."""
        before, count = self._clock() - ended_for // timedelta(microseconds=1), 0
        while found := self._prune_some(before):
            count += found
        return count

    def list(self) -> list[ApiKey]:
        """All keys, the oldest first."""
        return [_key(row) for row in self._execute("SELECT * FROM keys ORDER BY created_at, id", ())]

    def find(self, token: str, monotonic: float) -> ApiKey | None:
        """Return the key of a token, None where there is none or it is good no more; `monotonic` are seconds."""
        self._follow(monotonic)
        parts = parse_token(token)
        if parts is None:
            return self._find_token(token)
        id, digest = parts
        key = self._look_up(id)
        # Compared also where there is no such key, so that ids cannot be told by the time it takes.
        if not is_same_digest(digest, key.digest if key else _NOBODY) or key is None:
            return None
        return key if key.is_good(self._clock()) else None

    def is_good(self, key: ApiKey, monotonic: float) -> bool:
        """Whether a key that was found before is good still."""
        self._follow(monotonic)
        if key.issuer is not None and not key.is_good(self._clock()):
            return False
        known = self._look_up(key.issuer or key.id)
        return known is not None and known.is_good(self._clock())

    def count(self) -> int:
        """How many keys open anything."""
        found = self._execute(f"SELECT count(*) FROM keys WHERE {_GOOD}", (self._clock(),))
        return int(found[0][0])

    def issue(self, issuer: ApiKey, customer: str, lasts: timedelta) -> tuple[str, ApiKey]:
        """Return a token of this customer, issued with this key; signed and stored nowhere."""
        now = self._clock()
        ends = now + lasts // timedelta(microseconds=1)
        secrets = self._signing()
        id = next(reversed(secrets))
        claims = Claims(id, issuer.id, customer, now, ends)
        return sign_token(claims, secrets[id]), build_key(claims, issuer)

    def open_signing(self) -> None:
        """Have a secret to sign tokens with, before the first one is asked for."""
        if not self._signing():
            self.rotate_signing(timedelta(0))

    def rotate_signing(self, overlap: timedelta) -> str:
        """Sign tokens with another secret from now on; what the earlier ones signed is good for the overlap."""
        now, id = self._clock(), self._random(ID_BYTES).hex()
        ends = now + overlap // timedelta(microseconds=1)
        with self._file.transaction():
            self._execute("DELETE FROM signing WHERE retires_at <= ?", (now,))
            self._execute("UPDATE signing SET retires_at = min(coalesce(retires_at, ?1), ?1)", (ends,))
            self._execute("INSERT INTO signing VALUES (?, ?, ?, NULL)", (id, self._random(SECRET_BYTES), now))
        self._secrets = None
        return id

    def close(self) -> None:
        self._reader.close()
        self._file.close()

    def _find_token(self, token: str) -> ApiKey | None:
        claims = read_token(token, self._signing())
        issuer = self._look_up(claims.issuer) if claims is not None else None
        if claims is None or issuer is None or not issuer.is_good(self._clock()):
            return None
        key = build_key(claims, issuer)
        return key if key.is_good(self._clock()) else None

    def _signing(self) -> dict[str, bytes]:
        """Return the secrets by id that are in force, the newest last."""
        if self._secrets is None:
            self._secrets = dict(
                self._read(
                    "SELECT id, secret FROM signing WHERE coalesce(retires_at > ?, 1) ORDER BY created_at, rowid",
                    (self._clock(),),
                )
            )
        return self._secrets

    def _look_up(self, id: str) -> ApiKey | None:
        if id not in self._known:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[id] = next(map(_key, self._read("SELECT * FROM keys WHERE id = ?", (id,))), None)
        return self._known[id]

    def _one(self, id: str) -> ApiKey:
        found = self._execute("SELECT * FROM keys WHERE id = ?", (id,))
        if not found:
            raise KeysError(f"keys: there is none with the id {id[:60]!r}; `tidegate keys list` has them")
        return _key(found[0])

    def _insert(
        self, name: str, scopes: frozenset[Scope], customer: str | None, now: int, expires_at: int | None
    ) -> tuple[str, ApiKey]:
        token = format_token(self._random(ID_BYTES), _urlsafe(self._random(SECRET_BYTES)))
        parts = parse_token(token)
        assert parts is not None
        id, digest = parts
        row = (id, name, " ".join(sorted(scopes)), customer, digest, now, expires_at, None)
        self._execute(_INSERT, row)
        return token, _key(row)

    def _make_room(self, now: int) -> None:
        """Where there are as many keys as may be, forget some that open nothing, the rest with `prune`."""
        if int(self._execute("SELECT count(*) FROM keys", ())[0][0]) < KEYS_MAX:
            return
        if not self._prune_some(now):
            raise KeysError(
                f"keys: there are {KEYS_MAX} already that are good; revoke some (`tidegate keys revoke ID`), and give "
                "customers' pages short-lived tokens instead (POST /v1/customers/CUSTOMER/tokens)"
            )

    def _prune_some(self, before: int) -> int:
        found = self._execute(_ENDED, (before, PRUNED_AT_ONCE))
        self._execute(
            f"DELETE FROM keys WHERE id IN ({','.join('?' * len(found))})", tuple(id for (id,) in found)
        )
        return len(found)

    def _follow(self, monotonic: float) -> None:
        if monotonic < self._look_at:
            return
        self._look_at = monotonic + LOOK
        # Also without a change, as a secret may have retired.
        self._secrets = None
        try:
            version = int(self._read("PRAGMA data_version", ())[0][0])
        except KeysError:
            # While it is being written, what is known holds; not for long, as a key may have been revoked.
            if monotonic - self._seen_at > BLIND_S:
                raise
            return
        self._seen_at = monotonic
        if version != self._seen:
            self._known.clear()
            self._seen = version

    def _read(self, statement: str, parameters: tuple[object, ...]) -> Rows:
        with self._reader.reading() as db:
            try:
                return db.execute(statement, parameters).fetchall()
            except sqlite3.OperationalError as error:
                # A write that a kill cut short is there, which only who may write can take back.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                    raise
                self._file.db.execute("SELECT 1 FROM keys LIMIT 1").fetchall()
                return db.execute(statement, parameters).fetchall()

    def _execute(self, statement: str, parameters: tuple[object, ...]) -> Rows:
        with self._file.reading("use") as db:
            return db.execute(statement, parameters).fetchall()


def _urlsafe(secret: bytes) -> str:
    return urlsafe_b64encode(secret).rstrip(b"=").decode()


def _key(row: tuple[Any, ...]) -> ApiKey:
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
    return msgspec.convert(fields, ApiKey)
