"""API keys: what one may do, and how it is known again.

A token is `tg_ID_SECRET`. The secret is 256 random bits, so what is kept is its SHA-256 and no slow hash: nobody
guesses their way through 2²⁵⁶, whereas a slow hash would let anybody keep the service busy with wrong tokens.
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


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret. `customer` is whom alone it may read about, None for everybody.

    `digest` is the SHA-256 of the secret, of a customer's token nothing; times are µs since the epoch. `issuer` is the
    id of the key that a token was issued with, which has to be good as well.
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
        """Whether it opens anything by now."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def token_of(id: bytes, secret: str) -> str:
    """The token of these random bytes and this random text."""
    return f"tg_{id.hex()}_{secret}"


def parted(token: str) -> tuple[str, bytes] | None:
    """The id in a token and the digest of its secret; None where it is no token."""
    found = TOKEN.fullmatch(token)
    return (found[1], sha256(found[2].encode()).digest()) if found else None


def is_same(one: bytes, other: bytes) -> bool:
    """In a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)


def check_key(scopes: frozenset[Scope], customer: str | None) -> None:
    """ValueError where no key should be like that."""
    if not scopes:
        raise ValueError(f"scopes: needs at least one of {', '.join(SCOPES)}")
    if customer is not None and scopes != {"read"}:
        raise ValueError("scopes: a customer's key needs read and nothing else")
