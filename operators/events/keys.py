"""Keys: the shard of a customer's events, and the identity of an event.

xxh3 is stable across processes, machines and releases, which `hash(str)` is not. An identity is the XOR of three
128-bit hashes under different seeds (tabulation hashing), so the parts are length-safe: `a-b,c` never equals `a,b-c`,
and two given identities collide with probability 2⁻¹²⁸. The hash is not keyed: whoever chooses ids to collide can only
hide events of the same customer, name and data.
"""

from xxhash import xxh3_64_intdigest, xxh3_128_digest

ID_SEED, SOURCE_SEED, CUSTOMER_SEED = 1, 2, 3


def shard_of(customer: str, shards: int) -> int:
    """Return the shard, 0 ≤ shard < `shards`, that has all state of this customer."""
    return xxh3_64_intdigest(customer.encode()) % shards


def digest_id(event_id: str) -> bytes:
    """Return 16 bytes for the event's own id."""
    return xxh3_128_digest(event_id.encode(), ID_SEED)


def digest_source(source: str) -> bytes:
    """Return 16 bytes for the event's source."""
    return xxh3_128_digest(source.encode(), SOURCE_SEED)


def digest_customer(customer: str) -> bytes:
    """Return 16 bytes for the customer."""
    return xxh3_128_digest(customer.encode(), CUSTOMER_SEED)


def compute_identity(customer: str, source: str, event_id: str) -> bytes:
    """Return 16 bytes for an event's identity: its `lo` and `hi` words, as `Settled` has them in columns.

    A CloudEvent has its own source; the source of an event in Dodo's form is the empty text.
    """
    parts = digest_customer(customer), digest_source(source), digest_id(event_id)
    whole = 0
    for part in parts:
        whole ^= int.from_bytes(part, "little")
    return whole.to_bytes(16, "little")
