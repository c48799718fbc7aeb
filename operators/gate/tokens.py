"""Short-lived tokens of one customer: signed, and not stored.

A token is `tgt_CLAIMS.SIGNATURE`, both base64url without padding: the claims are a JSON array, the signature is
HMAC-SHA256 over the text before the dot, under one of the service's signing secrets, which the claims name.
"""

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Final

import msgspec

from tidegate.operators.gate.access import ApiKey

TOKEN: Final = re.compile(r"(tgt_([A-Za-z0-9_-]{1,4000}))\.([A-Za-z0-9_-]{43})")
SECONDS_MIN, SECONDS_MAX = 60, 3600


class Claims(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The contents of a token; `issuer` is the id of the API key that issued it, times are µs since the epoch."""

    secret: str
    issuer: str
    customer: str
    issued_at: int
    expires_at: int


def sign_token(claims: Claims, secret: bytes) -> str:
    """Return the token for these claims."""
    signed = f"tgt_{_encode(msgspec.json.encode(claims))}"
    return f"{signed}.{_signature(signed, secret)}"


def read_token(token: str, secrets: Mapping[str, bytes]) -> Claims | None:
    """Return the claims of a token; None if none of the secrets has signed it."""
    found = TOKEN.fullmatch(token)
    if found is None:
        return None
    try:
        claims = msgspec.json.decode(_decode(found[2]), type=Claims)
    except (msgspec.MsgspecError, ValueError):
        return None
    secret = secrets.get(claims.secret)
    if secret is None or not hmac.compare_digest(found[3], _signature(found[1], secret)):
        return None
    return claims


def build_key(claims: Claims, issuer: ApiKey) -> ApiKey:
    """Return the API key that a token stands for."""
    return ApiKey(
        id=f"{claims.issuer}.{claims.issued_at}",
        name=f"token of {issuer.name}",
        scopes=frozenset({"read"}),
        customer=claims.customer,
        digest=b"",
        created_at=claims.issued_at,
        expires_at=claims.expires_at,
        issuer=claims.issuer,
    )


def _signature(signed: str, secret: bytes) -> str:
    return _encode(hmac.digest(secret, signed.encode(), "sha256"))


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
