"""The request bodies of the control plane."""

from typing import Annotated

import msgspec
from msgspec import Meta

from simulator.http.faults import Fault
from simulator.routes.seeding import Instant
from simulator.state.records import EventInput, KeyMode


class Reset(msgspec.Struct, forbid_unknown_fields=True):
    seed: int = 1


class SetClock(msgspec.Struct, forbid_unknown_fields=True):
    now: Instant | None = None
    advance_s: Annotated[float, Meta(ge=0)] = 0
    rate: Annotated[float, Meta(ge=0, le=1e6)] | None = None


class SetTier(msgspec.Struct, forbid_unknown_fields=True):
    tier: str


class SetKey(msgspec.Struct, forbid_unknown_fields=True):
    key: Annotated[str, Meta(min_length=1)]
    mode: KeyMode

    def __repr__(self) -> str:
        return f"SetKey(mode={self.mode!r})"


class Script(msgspec.Struct, forbid_unknown_fields=True):
    steps: list[Fault]
    where: str = "ingest"


class Insert(msgspec.Struct, forbid_unknown_fields=True):
    events: list[EventInput]


class Emit(msgspec.Struct, forbid_unknown_fields=True):
    """Sends a webhook about a subscription once more, or without a cause."""

    type: Annotated[str, Meta(pattern=r"^subscription\.")]
    subject: str


class Roll(msgspec.Struct, forbid_unknown_fields=True):
    """A cycle to close: `at` closes it early; `start` and `end` are the next one's, if they are not to follow on."""

    at: Instant | None = None
    start: Instant | None = None
    end: Instant | None = None


class ChangeSubscription(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    status: str | None = None
    product_id: str | None = None
    end: Instant | None = None
    expires_at: Instant | None = None
    cancel_at_next_billing_date: bool | None = None
