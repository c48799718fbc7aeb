"""API keys: what a key permits, and how it is verified.

A token is `tg_ID_SECRET`. The secret is 256 random bits, so its SHA-256 is stored and not a slow hash: nobody can guess
one of 2²⁵⁶ secrets, whereas a slow hash would let anybody keep the service busy with wrong tokens.
"""

import hmac
import re
from hashlib import sha256
from typing import Final, Literal

import msgspec

Scope = Literal["ingest", "check", "read", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("ingest", "check", "read", "admin")
TOKEN: Final = re.compile(r"tg_([0-9a-z]{12})_([A-Za-z0-9_-]{43})")
ID_BYTES, SECRET_BYTES = 6, 32


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key without its secret. `customer` is the only customer that it may read about, None for all.

    `digest` is the SHA-256 of the secret, empty for a customer's token; times are µs since the epoch. `issuer` is the
    id of the key that a token was issued with, which must be valid too.
    """

    id: str
    name: str
    scopes: frozenset[Scope]
    customer: str | None
    digest: bytes
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    issuer: str | None = None

    def is_good(self, now: int) -> bool:
        """Return whether the key is valid at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def format_token(id: bytes, secret: str) -> str:
    """Return the token for these random bytes and this random text."""
    return f"tg_{id.hex()}_{secret}"


def parse_token(token: str) -> tuple[str, bytes] | None:
    """Return the id in a token and the digest of its secret; None if it is not a token."""
    found = TOKEN.fullmatch(token)
    return (found[1], sha256(found[2].encode()).digest()) if found else None


def is_same_digest(one: bytes, other: bytes) -> bool:
    """Return whether both are equal, in a time that does not reveal where they differ."""
    return hmac.compare_digest(one, other)


def check_key(scopes: frozenset[Scope], customer: str | None) -> None:
    """Check that a key with these scopes and this customer is allowed.

    Raises:
        ValueError: the combination is not allowed.
    """
    if not scopes:
        raise ValueError(f"scopes: needs at least one of {', '.join(SCOPES)}")
    if customer is not None and scopes != {"read"}:
        raise ValueError("scopes: a customer's key needs read and nothing else")
