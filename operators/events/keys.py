"""Where a customer's events go, and what an event is known by.

xxh3 is stable across processes, machines and releases, which `hash(str)` is not. An identity is the XOR of
three 128-bit hashes under different seeds (tabulation hashing), so the parts are length-safe: `a-b,c` never
equals `a,b-c`, and two given identities collide with probability 2⁻¹²⁸. The hash is not keyed: who chose
ids to collide could only hide events of the same customer, name and data.
"""

from xxhash import xxh3_64_intdigest, xxh3_128_digest

ID_SEED, SOURCE_SEED, CUSTOMER_SEED = 1, 2, 3


def shard_of(customer: str, shards: int) -> int:
    """The shard, 0 ≤ shard < `shards`, that keeps everything of this customer."""
    return xxh3_64_intdigest(customer.encode()) % shards


def id_digest(event_id: str) -> bytes:
    """16 bytes for the event's own id."""
    return xxh3_128_digest(event_id.encode(), ID_SEED)


def source_digest(source: str) -> bytes:
    """16 bytes for the event's source."""
    return xxh3_128_digest(source.encode(), SOURCE_SEED)


def customer_digest(customer: str) -> bytes:
    """16 bytes for the customer."""
    return xxh3_128_digest(customer.encode(), CUSTOMER_SEED)


def identity(customer: str, source: str, event_id: str) -> bytes:
    """16 bytes for an event's identity: its `lo` and `hi` words, as `Settled` has them in columns.

    A CloudEvent has its own source; the source of an event in Dodo's shape is the empty text.
    """
    parts = customer_digest(customer), source_digest(source), id_digest(event_id)
    whole = 0
    for part in parts:
        whole ^= int.from_bytes(part, "little")
    return whole.to_bytes(16, "little")
