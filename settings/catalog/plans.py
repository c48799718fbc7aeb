"""What may be written under `plans` and `customers`: periods and limits."""

from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tidegate.operators.model.catalog import BilledBy, Fail, Limit, OnCap, SpendCap, Threshold, Tier
from tidegate.operators.model.periods import Anchored, Billing, Calendar, Never, Policy
from tidegate.settings.catalog.fields import Instant, Level, MeterName, Name, Zone
from tidegate.settings.catalog.numbers import Count, Grace, Percent, Quantity
from tidegate.settings.durations import read_duration
from tidegate.settings.problems import Strict

MAX_LAG: Final = 5_000_000
"""How old totals may be before a cap's `fail` decides, unless the catalog says otherwise (µs)."""


def _read_max_lag(value: object) -> int | None:
    """Return a duration in µs, None for `off`."""
    if value == "off":
        return None
    try:
        lag = read_duration(str(value).strip())
    except ValueError:
        raise ValueError("needs a duration such as 5s or 2m, or off") from None
    if not timedelta(seconds=1) <= lag <= timedelta(days=35):
        raise ValueError("needs 1s to 35d, or off")
    return lag // timedelta(microseconds=1)


MaxLag = Annotated[int | None, BeforeValidator(_read_max_lag)]

# More levels or tiers than this is a mistake in whatever wrote the file.
LEVELS_MAX: Final = 32


class CalendarEntry(Strict):
    type: Literal["calendar"]
    every: Literal["month", "week", "day", "hour"]

    def policy(self) -> Policy:
        return Calendar(self.every)


class AnchoredEntry(Strict):
    type: Literal["anchored"]
    every: Count
    unit: Literal["day", "month"]
    anchor: Instant

    @model_validator(mode="after")
    def _is_period(self) -> Self:
        self.policy()
        return self

    def policy(self) -> Policy:
        return Anchored(self.every, self.unit, self.anchor)


class BillingEntry(Strict):
    type: Literal["billing"]
    edges: tuple[Instant, ...] = ()

    @model_validator(mode="after")
    def _is_period(self) -> Self:
        self.policy()
        return self

    def policy(self) -> Policy:
        return Billing(self.edges)


class NeverEntry(Strict):
    type: Literal["never"]

    def policy(self) -> Policy:
        return Never()


Period = Annotated[CalendarEntry | AnchoredEntry | BillingEntry | NeverEntry, Field(discriminator="type")]


class TierEntry(Strict):
    up_to: Quantity | None = None
    price: Quantity


class CapEntry(Strict):
    """A plan's cap, or what a customer's differs in: the fields that are written."""

    cap: Quantity | None = None
    on_cap: OnCap = "block"
    grace_pct: Grace = Decimal(0)
    fail: Fail = "open"
    max_lag: MaxLag = MAX_LAG
    shadow: bool = False

    def over(self, base: Self | None) -> Self:
        """Return this entry's fields where they are written, else those of `base`."""
        if base is None:
            return self
        return base.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


class SpendCapEntry(CapEntry):
    """A cap on what all overage costs, in the unit of the tiers' prices."""

    def spend_cap(self) -> SpendCap:
        return SpendCap(**dict(self))


class LimitEntry(CapEntry):
    """A cap on one meter, with what is told and billed on the way there."""

    included: Quantity | None = None
    thresholds: tuple[Level, ...] = Field((), max_length=LEVELS_MAX)
    hysteresis_pct: Percent = Decimal(0)
    tiers: tuple[TierEntry, ...] = Field((), max_length=LEVELS_MAX)

    @field_validator("thresholds")
    @classmethod
    def _are_different(cls, thresholds: tuple[Threshold, ...]) -> tuple[Threshold, ...]:
        if len(set(thresholds)) < len(thresholds):
            raise ValueError("needs each threshold once")
        return thresholds

    @field_validator("tiers")
    @classmethod
    def _ascend(cls, tiers: tuple[TierEntry, ...]) -> tuple[TierEntry, ...]:
        ends = [tier.up_to for tier in tiers]
        if None in ends[:-1]:
            raise ValueError("needs up_to in every tier but the last")
        closed = [Decimal(0), *(end for end in ends if end is not None)]
        if any(later <= earlier for earlier, later in pairwise(closed)):
            raise ValueError("needs up_to of more than 0 that ascend from tier to tier")
        return tiers

    def limit(self) -> Limit:
        tiers = tuple(Tier(tier.up_to, tier.price) for tier in self.tiers)
        return Limit(**{**self.__dict__, "tiers": tiers})


class PlanEntry(Strict):
    zone: Zone | None = None
    period: Period = CalendarEntry(type="calendar", every="month")
    limits: dict[MeterName, LimitEntry] = Field(default_factory=dict)
    spend_cap: SpendCapEntry | None = None
    billing_id: Name | None = None


class BilledByEntry(Strict):
    """The subscription that pull, webhooks and reconciliation took a customer's period from."""

    subscription: Name
    product: Name

    def billed_by(self) -> BilledBy:
        return BilledBy(self.subscription, self.product)


class CustomerEntry(Strict):
    plan: Name | None = None
    zone: Zone | None = None
    billing_id: Name | None = None
    period: Period | None = None
    limits: dict[MeterName, LimitEntry] = Field(default_factory=dict)
    spend_cap: SpendCapEntry | None = None
    billed_by: BilledByEntry | None = None
