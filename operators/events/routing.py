"""Routing: names for shards that spread evenly over workers.

Bytewax assigns a key to the worker `hash(key) mod workers`. With the plain numbers 0 to 15 as keys, one of two workers
would get ten shards and one of four only two. A shard's name therefore has a suffix that makes its hash equal to the
shard's own number modulo 48, which is even for 2, 3, 4, 6, 8, 12 and 16 workers. If another Bytewax version hashes
differently, the spread is random, and nothing else changes.
Source: SipHash-1-3 with a zero key over the text and a byte 0xff, as Rust's DefaultHasher does it; Aumasson and
Bernstein, SipHash, 2012.
"""

from itertools import count

EVEN = 48
_MASK = 2**64 - 1


def list_shard_names(shards: int) -> list[str]:
    """Return one name per shard, `NUMBER.SUFFIX`; the same on every machine."""
    return [_find_name(shard) for shard in range(shards)]


def parse_shard_name(name: str) -> int:
    """Return the shard's number."""
    return int(name.partition(".")[0])


def _find_name(shard: int) -> str:
    names = (f"{shard}.{suffix}" for suffix in count())
    return next(name for name in names if compute_siphash(name.encode() + b"\xff") % EVEN == shard % EVEN)


def compute_siphash(text: bytes) -> int:
    """Return SipHash-1-3 with a zero key."""
    v0, v1, v2, v3 = 0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573
    whole = len(text) - len(text) % 8
    words = [int.from_bytes(text[i : i + 8], "little") for i in range(0, whole, 8)]
    words.append((len(text) % 256) << 56 | int.from_bytes(text[whole:], "little"))
    for word in words:
        v3 ^= word
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = (v0 + v1) & _MASK
    v1 = _rotate(v1, 13) ^ v0
    v0 = _rotate(v0, 32)
    v2 = (v2 + v3) & _MASK
    v3 = _rotate(v3, 16) ^ v2
    v0 = (v0 + v3) & _MASK
    v3 = _rotate(v3, 21) ^ v0
    v2 = (v2 + v1) & _MASK
    v1 = _rotate(v1, 17) ^ v2
    return v0, v1, _rotate(v2, 32), v3


def _rotate(word: int, by: int) -> int:
    return ((word << by) | (word >> (64 - by))) & _MASK
