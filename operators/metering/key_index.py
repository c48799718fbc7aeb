"""The key index: a shard's customers and keys by row number, with the catalog's terms for each.

The terms are looked up once, when a customer or key is first seen, and again after a restart, so that the hot path
reads arrays instead of dictionaries. Rows are numbered in order of first appearance and never change.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidegate.operators.columns.grouping import group_rows
from tidegate.operators.events.chunk import Chunk, Ints
from tidegate.operators.metering.thresholds import AlertRules, build_rules
from tidegate.operators.metering.windows import KEYS_MAX
from tidegate.operators.model.aggregates import AGGREGATES, FOLD_CODES
from tidegate.operators.model.catalog import Catalog, Meter, explain_clash
from tidegate.operators.model.periods import MIN_AT, Buckets, Periods, Policy, get_buckets

UNCOUNTED = -1


class EventWindows(NamedTuple):
    """The windows of events: starts and ends, µs since the epoch."""

    hour: Ints
    hour_end: Ints
    day: Ints
    period: Ints
    period_end: Ints


class GrowingColumn:
    """An integer column that grows; `values` is the part in use."""

    def __init__(self, fill: int = 0) -> None:
        self._fill = fill
        self._room = np.full(64, fill, np.int64)
        self.size = 0

    @property
    def values(self) -> Ints:
        """The values in use, as a view."""
        return self._room[: self.size]

    def extend(self, values: Ints) -> None:
        """Append values."""
        size = self.size + len(values)
        if size > len(self._room):
            wider = np.full(max(size, len(self._room) * 5 // 4 + 64), self._fill, np.int64)
            wider[: self.size] = self.values
            self._room = wider
        self._room[self.size : size] = values
        self.size = size


class KeyIndex:
    """The customers and keys of a shard. A key is a customer and a meter that has read something.

    `clock` is each customer's latest now with the event clock, 0 before the first event; everything of the customer
    before `floor` may be forgotten. Meters are numbered in order of first appearance: a meter that leaves the catalog
    keeps its number, a new one gets the next.
    """

    def __init__(self, catalog: Catalog, meters: list[Meter] | None = None, number: int = 0) -> None:
        self.catalog = catalog
        self.meters = list(meters or [])
        self.meter_numbers: dict[int, Ints] = {}
        self.refused: dict[str, str] = {}
        self._keys = np.full((0, 64), -1, np.int64)
        self.learn_catalog(number, catalog)
        self.names: list[str] = []
        self.row_of: dict[str, int] = {}
        self.clock = GrowingColumn()
        self.floor = GrowingColumn()
        self.key_customer = GrowingColumn()
        self.key_meter = GrowingColumn()
        self.key_rules = GrowingColumn()
        self.rules: list[AlertRules] = []
        self._zones: list[Buckets] = []
        self._zone = GrowingColumn()
        self._policies: list[Periods] = []
        self._policy = GrowingColumn()
        self._zone_numbers: dict[str, int] = {}
        self._policy_numbers: dict[tuple[Policy, str], int] = {}
        # All customers with the same number have the limits of the customer in `_limited` at that index.
        self._limited: list[str] = []
        self._limits = GrowingColumn()
        self._limit_numbers: dict[str | int, int] = {}
        self._unnamed_terms: tuple[int, int, int] | None = None
        self._rule_numbers: dict[object, int] = {}
        self._shared = np.empty(0, np.int64)

    def learn_catalog(self, number: int, catalog: Catalog) -> None:
        """Record how the catalog with this number counts its meters, for chunks that were decoded under it.

        A meter that cannot continue from the total of its name counts nothing, and `refused` says why. Such a catalog
        is only ever applied by an older program version, or to a store without the flow's state.
        """
        known = {meter.name: number for number, meter in enumerate(self.meters)}
        numbers = []
        for meter in catalog.meters:
            place = known.get(meter.name, len(self.meters))
            if place == len(self.meters):
                self.meters.append(meter)
            elif clash := explain_clash(self.meters[place], meter):
                self.refused[meter.name] = clash
                place = UNCOUNTED
            numbers.append(place)
        self.meter_numbers[number] = np.array(numbers, np.int64)
        self.fold_of = np.array([FOLD_CODES[AGGREGATES[meter.kind].fold] for meter in self.meters], np.int64)
        self.falls = np.array([AGGREGATES[meter.kind].may_fall for meter in self.meters], np.bool_)
        more = np.full((len(self.meters) - len(self._keys), self._keys.shape[1]), -1, np.int64)
        self._keys = np.concatenate((self._keys, more))

    def assign_customers(self, chunk: Chunk) -> Ints:
        """Return the row of each event's customer, adding new customers."""
        if not chunk.shared:
            return self.assign_rows(chunk.names)[chunk.customer]
        rows = self._shared
        if len(rows) < len(chunk.names):
            grown = np.full(max(len(chunk.names), len(rows) * 5 // 4), -1, np.int64)
            grown[: len(rows)] = rows
            rows = self._shared = grown
        found = rows[chunk.customer]
        if (found < 0).any():
            new = np.unique(chunk.customer[found < 0])
            rows[new] = self.assign_rows([chunk.names[local] for local in new.tolist()])
            found = rows[chunk.customer]
        return found

    def assign_row(self, name: str) -> int:
        """Return the row of one customer, adding a new one."""
        return int(self.assign_rows([name])[0])

    def assign_rows(self, names: list[str]) -> Ints:
        """Return the row of each customer, adding new ones."""
        new = [name for name in dict.fromkeys(names) if name not in self.row_of]
        if new:
            self._append_customers(new)
        return np.array([self.row_of[name] for name in names], np.int64)

    def _append_customers(self, names: list[str]) -> None:
        first = len(self.names)
        self.names += names
        self.row_of.update(zip(names, range(first, len(self.names)), strict=True))
        zone, policy, limits = np.array([self._find_terms(name) for name in names], np.int64).T
        self.clock.extend(np.zeros(len(names), np.int64))
        self.floor.extend(np.zeros(len(names), np.int64))
        self._zone.extend(zone)
        self._policy.extend(policy)
        self._limits.extend(limits)
        if len(self.names) > self._keys.shape[1]:
            wider = np.full((len(self.meters), len(self.names) * 5 // 4 + 64), -1, np.int64)
            wider[:, : self._keys.shape[1]] = self._keys
            self._keys = wider

    def _find_terms(self, name: str) -> tuple[int, int, int]:
        """Return the numbers of a customer's zone, policy and limits."""
        known = self.catalog.customers.get(name)
        # All customers that the catalog does not name have the same terms.
        terms = self._unnamed_terms if known is None else None
        if terms is None:
            zone = self.catalog.zone_of(name)
            policy = (self.catalog.period_of(name), zone)
            if zone not in self._zone_numbers:
                self._zone_numbers[zone] = len(self._zones)
                self._zones.append(get_buckets(zone))
            if policy not in self._policy_numbers:
                self._policy_numbers[policy] = len(self._policies)
                self._policies.append(Periods(*policy))
            # Compared by identity, as for rules, because one plan is one object.
            limits = name if known and known.limits else id(self.catalog.plan_of(name))
            if limits not in self._limit_numbers:
                self._limit_numbers[limits] = len(self._limited)
                self._limited.append(name)
            terms = self._zone_numbers[zone], self._policy_numbers[policy], self._limit_numbers[limits]
            if known is None:
                self._unnamed_terms = terms
        return terms

    def take_over(self, old: "KeyIndex") -> None:
        """Fill this new index with the customers and keys of another one, under its own catalog."""
        self.assign_rows(old.names)
        self.clock, self.floor = old.clock, old.floor
        self.add_keys(old.key_customer.values, old.key_meter.values)
        self._shared = old._shared

    def list_limit_versions(self) -> NDArray[np.str_]:
        """Return the version of each key's limit."""
        versions = np.array([rules.version for rules in self.rules] or [""])
        return versions[self.key_rules.values]

    def assign_keys(self, customer: Ints, meter: Ints) -> Ints:
        """Return the row of each pair of customer row and meter number, adding new pairs."""
        found = self._keys[meter, customer]
        if (found < 0).any():
            missing = found < 0
            # One number per pair, because numpy sorts columns of two numbers a hundred times slower.
            pairs = np.unique(customer[missing] * len(self.meters) + meter[missing])
            self.add_keys(*np.divmod(pairs, len(self.meters)))
            found = self._keys[meter, customer]
        return found

    def add_keys(self, customer: Ints, meter: Ints) -> None:
        """Add rows for pairs that have none.

        Raises:
            OverflowError: the shard has more than `KEYS_MAX` keys.
        """
        first = self.key_customer.size
        if first + len(meter) > KEYS_MAX:
            raise OverflowError(f"a shard has room for {KEYS_MAX} customers times meters; use more shards")
        self._keys[meter, customer] = np.arange(first, first + len(meter))
        self.key_customer.extend(customer)
        self.key_meter.extend(meter)
        pairs, place = np.unique(
            self._limits.values[customer] * len(self.meters) + meter, return_inverse=True
        )
        limits, meters = (part.tolist() for part in np.divmod(pairs, len(self.meters)))
        rules = [
            self._number_rules(self._limited[number], self.meters[counted].name)
            for number, counted in zip(limits, meters, strict=True)
        ]
        self.key_rules.extend(np.array(rules, np.int64)[place])

    def find_windows(self, customer: Ints, at: Ints) -> EventWindows:
        """Return the windows that contain each event."""
        zone, policy = self._zone.values[customer], self._policy.values[customer]
        hour, hour_end, day, period, period_end = (np.empty(len(at), np.int64) for _ in range(5))
        for number, rows in group_rows(zone):
            hour[rows], hour_end[rows] = self._zones[number].find_hours(at[rows])
            day[rows] = self._zones[number].find_days(at[rows])[0]
        for number, rows in group_rows(policy):
            period[rows], period_end[rows] = self._policies[number].find(at[rows])
        return EventWindows(hour, hour_end, day, period, period_end)

    def find_period_bounds(self, customer: Ints, at: Ints) -> tuple[Ints, Ints]:
        """Return start and end of the period that contains each instant."""
        starts, ends = np.empty_like(at), np.empty_like(at)
        for number, rows in group_rows(self._policy.values[customer]):
            starts[rows], ends[rows] = self._policies[number].find(at[rows])
        return starts, ends

    def find_bucket_bounds(self, customer: Ints, start: Ints, is_day: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Return start and end of the hour or day that contains each `start` of a bucket."""
        return find_bucket_bounds(self._zones, self._zone.values[customer], start, is_day)

    @property
    def zone(self) -> Ints:
        """The zone of each customer, as an index into `zone_names`."""
        return self._zone.values

    @property
    def zone_names(self) -> list[str]:
        """The zones of all customers."""
        return list(self._zone_numbers)

    def find_changed_periods(self, old: "KeyIndex") -> NDArray[np.bool_]:
        """Mark the customers whose periods differ from those of another index of the same customers."""
        same = np.array([self._policy_numbers.get(policy, -1) for policy in old._policy_numbers] or [-1])
        other: NDArray[np.bool_] = same[old._policy.values] != self._policy.values
        return other

    def _number_rules(self, customer: str, meter: str) -> int:
        # Compared by identity: a plan's limit is one object for all its customers, and the catalog keeps it alive.
        limit = self.catalog.limit_of(customer, meter)
        number = self._rule_numbers.get(id(limit))
        if number is None:
            number = self._rule_numbers[id(limit)] = len(self.rules)
            self.rules.append(build_rules(limit))
        return number


def find_bucket_bounds(
    zones: Sequence[Buckets], zone: Ints, start: Ints, is_day: NDArray[np.bool_]
) -> tuple[Ints, Ints]:
    """Return start and end of the hour or day that contains each `start` of a bucket; `zone` indexes `zones`."""
    # No event is older than MIN_AT, so the bucket of MIN_AT stands for one that begins earlier.
    at = np.maximum(start, MIN_AT)
    starts, ends = np.empty_like(at), np.empty_like(at)
    for number, rows in group_rows(zone):
        hour, day = zones[number].find_hours(at[rows]), zones[number].find_days(at[rows])
        starts[rows] = np.where(is_day[rows], day[0], hour[0])
        ends[rows] = np.where(is_day[rows], day[1], hour[1])
    return starts, ends
