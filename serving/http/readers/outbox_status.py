"""What waits for the provider, and what went there last, as far as this machine has it."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.outbox.schema import OutboxError
from tidegate.operators.events.keys import shard_of
from tidegate.serving.views.formatting import US, instant
from tidegate.settings.addresses.sinks import BillingFile, Dodo
from tidegate.settings.serving import ServingSettings

TAIL_BYTES: Final = 1 << 20


def outbox_of(settings: ServingSettings, now: int) -> dict[str, Any] | None:
    """How the outbox stands; None where billing has none, or none yet."""
    if not isinstance(settings.billing, Dodo):
        return None
    try:
        with closing(OutboxReader(settings.billing.outbox_path(settings.data_dir))) as reader:
            statistics = reader.read_statistics()
    except OutboxError:
        return None
    oldest = statistics.oldest_at
    return {
        "waiting": statistics.waiting,
        "oldest_at": None if oldest is None else instant(oldest),
        "age": None if oldest is None else max(now - oldest, 0) / US,
        "parked": statistics.parked,
        "refused": statistics.refused,
        "bytes": statistics.bytes,
        "alerts": statistics.alerts,
    }


def last_events(settings: ServingSettings, customer: str, limit: int) -> list[dict[str, Any]]:
    """Return the customer's newest events in the billing folder, the newest first, as far as its last megabyte goes."""
    if not isinstance(settings.billing, BillingFile):
        return []
    parts = settings.shards
    shard = shard_of(customer, parts)
    path = Path(settings.billing.path) / f"{shard:0{max(2, len(str(parts - 1)))}d}.ndjson"
    found: list[dict[str, Any]] = []
    # The name as it stands in the line, so that most lines need not be read.
    needle = msgspec.json.encode(customer)
    for line in reversed(_tail(path)):
        if needle in line and (event := _event(line)).get("customer_id") == customer:
            found.append(event)
            if len(found) == limit:
                break
    return found


def _tail(path: Path) -> list[bytes]:
    """Whole lines at a file's end; none where it is not there."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read(TAIL_BYTES).split(b"\n")
    except OSError:
        return []
    # The first may have lost its begin, the last is not at its end yet.
    return lines[1 if size > TAIL_BYTES else 0 : -1]


def _event(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
