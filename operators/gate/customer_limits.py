"""What a catalog says of one customer, made ready for decisions.

Quantities are whole numbers times 10²⁴ (operators/columns/quantity.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tidegate.operators.columns.quantity import scaled
from tidegate.operators.gate.caps import edge_of
from tidegate.operators.model.aggregates import LEVELS, Kind
from tidegate.operators.model.catalog import Catalog, Fail, Limit, SpendCap
from tidegate.operators.model.periods import Policy, period_of
from tidegate.operators.model.ports import Scope

Asked = Mapping[str, int]


class Bound(NamedTuple):
    """A meter's cap: the limit's own, and with its grace."""

    limit: Limit
    cap: int
    edge: int


@dataclass(frozen=True, slots=True)
class Own:
    """What holds for one customer under catalog `number`: `bounds` of the meters with a cap, `limits` of all."""

    customer: str
    number: int
    meters: tuple[str, ...]
    kinds: Mapping[str, Kind]
    bounds: Mapping[str, Bound]
    limits: Mapping[str, Limit]
    spend: SpendCap | None
    policy: Policy
    zone: str
    trusted: int | None
    """The least `max_lag` of all caps that may deny (µs), None where none has one."""

    def period(self, now: int) -> tuple[int, int]:
        """The period that holds `now` (µs)."""
        return period_of(self.policy, self.zone, now)

    def scope(self, start: int) -> Scope:
        """What has to be read for a decision in the period that begins at `start`."""
        return Scope(self.meters, start)

    def ceilings(self, asked: Asked) -> dict[str, int]:
        """Per meter the most that used, held and asked for may come to; -1 where no room would be enough."""
        found = {}
        for meter, quantity in asked.items():
            bound = self.bounds.get(meter)
            if bound is None or not denies(bound.limit):
                continue
            if self.kinds[meter] not in LEVELS:
                found[meter] = bound.edge
            elif quantity > bound.edge:
                found[meter] = -1
        return found

    def may_be_outdated(self, lag: int | None) -> bool:
        """Whether any cap may not trust totals of this age (µs)."""
        return self.trusted is not None and (lag is None or lag > self.trusted)

    def outdated(self, asked: Iterable[str], lag: int | None) -> list[tuple[str, Fail]]:
        """What each cap does that may deny and does not trust totals of this age (µs, None: unknown), as in `fails`."""
        caps: list[tuple[str, Limit | SpendCap]] = [
            (meter, self.bounds[meter].limit) for meter in asked if meter in self.bounds
        ]
        if self.spend is not None:
            caps.append(("", self.spend))
        return [
            (meter, cap.fail)
            for meter, cap in caps
            if denies(cap) and cap.max_lag is not None and (lag is None or lag > cap.max_lag)
        ]

    def spend_denies(self) -> bool:
        """Whether room on the meters asked for is not all that counts, as the spend cap may deny."""
        return self.spend is not None and denies(self.spend)

    def fails(self, asked: Iterable[str]) -> list[tuple[str, Fail]]:
        """What each cap that may deny does while the store is away, by meter; "" is the spend cap."""
        found = [(meter, self.bounds[meter].limit) for meter in asked if meter in self.bounds]
        fails: list[tuple[str, Fail]] = [(meter, limit.fail) for meter, limit in found if denies(limit)]
        if self.spend is not None and denies(self.spend):
            fails.append(("", self.spend.fail))
        return fails


class Bounds:
    """A catalog's caps; `number` is that of its version, 0 for a catalog that is not the store's."""

    def __init__(self, catalog: Catalog, number: int) -> None:
        self.number = number
        self._catalog = catalog
        self._meters = tuple(meter.name for meter in catalog.meters)
        self._kinds = {meter.name: meter.kind for meter in catalog.meters}
        # By identity: a plan's limit is one object for all its customers, and the catalog keeps it alive.
        self._bounds: dict[int, Bound] = {}

    def of(self, customer: str) -> Own:
        """What holds for this customer."""
        catalog = self._catalog
        limits = {meter: catalog.limit_of(customer, meter) for meter in self._meters}
        spend = catalog.spend_cap_of(customer)
        caps: list[Limit | SpendCap] = [*limits.values(), *([spend] if spend else [])]
        lags = [cap.max_lag for cap in caps if denies(cap) and cap.max_lag is not None]
        return Own(
            customer,
            self.number,
            self._meters,
            self._kinds,
            {meter: self._bound(limit) for meter, limit in limits.items() if limit.cap is not None},
            limits,
            spend,
            catalog.period_of(customer),
            catalog.zone_of(customer),
            min(lags, default=None),
        )

    def _bound(self, limit: Limit) -> Bound:
        bound = self._bounds.get(id(limit))
        if bound is None:
            assert limit.cap is not None
            cap = scaled(limit.cap)
            bound = self._bounds[id(limit)] = Bound(limit, cap, edge_of(cap, limit.grace_pct))
        return bound


def denies(cap: Limit | SpendCap) -> bool:
    """Whether this cap may deny anybody anything."""
    return cap.cap is not None and cap.on_cap == "block" and not cap.shadow
