"""Unknown behaviour of the real provider, to be tried both ways: CONTRACT's table of unknowns, and a few more.

The first choice, the default, is the behaviour that is hardest for a client.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(ge=0)]


class Switches(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One field per unknown. `replace` raises ValueError for a wrong name or value."""

    atomic_batches: bool = True
    ingested_count_mode: Literal["new_only", "accepted"] = "new_only"
    unknown_customer: Literal["reject400", "accept_unattributed"] = "reject400"
    swap_400_422: bool = False
    expired_dup: Literal["reject", "ignore"] = "reject"
    max_body_bytes: Annotated[int, Meta(ge=1, le=64 << 20)] = 2 << 20
    max_events: Annotated[int, Meta(ge=1)] = 5_000_000
    order: Literal["newest_first", "oldest_first", "as_stored"] = "newest_first"
    page_cap: Literal["reject", "clamp"] = "reject"
    range_edges: Literal["closed", "open", "half_open"] = "closed"
    usage_visibility_lag_s: Seconds = 60
    event_visibility_lag_s: Seconds = 2
    open_cycle_in_history: bool = True
    closed_cycles: Literal["grow", "frozen"] = "grow"
    negative_sum: Literal["reject400", "accept", "ignore"] = "reject400"
    retroactive_meters: bool = False
    reset_unit: Literal["epoch", "delta"] = "epoch"
    send_retry_after: bool = False
    limit_window: Literal["sliding", "fixed"] = "sliding"
    auto_renew: bool = True
    bill_usage_at_pause: bool = True
    credit_worker_s: Annotated[float, Meta(gt=0)] = 60
    webhook_clock: Literal["wall", "platform"] = "wall"
    webhook_order: Literal["fifo", "reversed", "shuffled"] = "shuffled"
    webhook_duplicates: Annotated[float, Meta(ge=0, le=1)] = 0.1
    webhook_auto: bool = True

    def replace(self, changes: dict[str, Any]) -> "Switches":
        """Return these switches with some of them set.

        Raises:
            ValueError: the message names what does not fit.
        """
        try:
            return msgspec.convert(msgspec.to_builtins(self) | changes, Switches)
        except msgspec.ValidationError as error:
            raise ValueError(f"switches: {error}; there are {', '.join(self.__struct_fields__)}") from error
