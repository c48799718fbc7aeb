"""A customer's limits under one catalog, prepared for decisions.

Quantities are whole numbers times 10²⁴ (operators/columns/quantity.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tidegate.operators.columns.quantity import scale
from tidegate.operators.gate.caps import compute_edge
from tidegate.operators.model.aggregates import LEVELS, Kind
from tidegate.operators.model.catalog import Catalog, Fail, Limit, SpendCap
from tidegate.operators.model.periods import Policy, find_period
from tidegate.operators.model.ports import Scope

Asked = Mapping[str, int]


class CapBound(NamedTuple):
    """A meter's cap: the cap itself, and the cap with its grace."""

    limit: Limit
    cap: int
    edge: int


@dataclass(frozen=True, slots=True)
class CustomerLimits:
    """The limits of one customer under catalog `number`: `bounds` of the meters with a cap, `limits` of all meters."""

    customer: str
    number: int
    meters: tuple[str, ...]
    kinds: Mapping[str, Kind]
    bounds: Mapping[str, CapBound]
    limits: Mapping[str, Limit]
    spend: SpendCap | None
    policy: Policy
    zone: str
    trusted: int | None
    """The least `max_lag` of all caps that may deny (µs), None if none has one."""

    def find_period(self, now: int) -> tuple[int, int]:
        """Return the period that contains `now` (µs)."""
        return find_period(self.policy, self.zone, now)

    def build_scope(self, start: int) -> Scope:
        """Return what must be read for a decision in the period that begins at `start`."""
        return Scope(self.meters, start)

    def compute_ceilings(self, asked: Asked) -> dict[str, int]:
        """Return per meter the most that used, held and requested may add up to; -1 if no room would be enough."""
        found = {}
        for meter, quantity in asked.items():
            bound = self.bounds.get(meter)
            if bound is None or not may_deny(bound.limit):
                continue
            if self.kinds[meter] not in LEVELS:
                found[meter] = bound.edge
            elif quantity > bound.edge:
                found[meter] = -1
        return found

    def may_be_outdated(self, lag: int | None) -> bool:
        """Return whether any cap distrusts totals of this age (µs)."""
        return self.trusted is not None and (lag is None or lag > self.trusted)

    def list_outdated(self, asked: Iterable[str], lag: int | None) -> list[tuple[str, Fail]]:
        """Return the caps that may deny and distrust totals of this age (µs, None: unknown), with their `fail`."""
        caps: list[tuple[str, Limit | SpendCap]] = [
            (meter, self.bounds[meter].limit) for meter in asked if meter in self.bounds
        ]
        if self.spend is not None:
            caps.append(("", self.spend))
        return [
            (meter, cap.fail)
            for meter, cap in caps
            if may_deny(cap) and cap.max_lag is not None and (lag is None or lag > cap.max_lag)
        ]

    def may_spend_cap_deny(self) -> bool:
        """Return whether the spend cap may deny, so that room on the requested meters is not sufficient."""
        return self.spend is not None and may_deny(self.spend)

    def list_fails(self, asked: Iterable[str]) -> list[tuple[str, Fail]]:
        """Return the `fail` of each cap that may deny while the store is unavailable, by meter; "" is the spend cap."""
        found = [(meter, self.bounds[meter].limit) for meter in asked if meter in self.bounds]
        fails: list[tuple[str, Fail]] = [(meter, limit.fail) for meter, limit in found if may_deny(limit)]
        if self.spend is not None and may_deny(self.spend):
            fails.append(("", self.spend.fail))
        return fails


class CatalogLimits:
    """The limits of a catalog; `number` is that of its version, 0 for a catalog that is not in the store."""

    def __init__(self, catalog: Catalog, number: int) -> None:
        self.number = number
        self._catalog = catalog
        self._meters = tuple(meter.name for meter in catalog.meters)
        self._kinds = {meter.name: meter.kind for meter in catalog.meters}
        # Compared by identity: a plan's limit is one object for all its customers, and the catalog keeps it alive.
        self._bounds: dict[int, CapBound] = {}

    def find(self, customer: str) -> CustomerLimits:
        """Return the limits of this customer."""
        catalog = self._catalog
        limits = {meter: catalog.limit_of(customer, meter) for meter in self._meters}
        spend = catalog.spend_cap_of(customer)
        caps: list[Limit | SpendCap] = [*limits.values(), *([spend] if spend else [])]
        lags = [cap.max_lag for cap in caps if may_deny(cap) and cap.max_lag is not None]
        return CustomerLimits(
            customer,
            self.number,
            self._meters,
            self._kinds,
            {meter: self._find_bound(limit) for meter, limit in limits.items() if limit.cap is not None},
            limits,
            spend,
            catalog.period_of(customer),
            catalog.zone_of(customer),
            min(lags, default=None),
        )

    def _find_bound(self, limit: Limit) -> CapBound:
        bound = self._bounds.get(id(limit))
        if bound is None:
            assert limit.cap is not None
            cap = scale(limit.cap)
            bound = self._bounds[id(limit)] = CapBound(limit, cap, compute_edge(cap, limit.grace_pct))
        return bound


def may_deny(cap: Limit | SpendCap) -> bool:
    """Return whether this cap may deny any request."""
    return cap.cap is not None and cap.on_cap == "block" and not cap.shadow
