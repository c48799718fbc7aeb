"""The catalog file: YAML text to `catalog.Catalog`, or every error in it with its line."""

import gc
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from tidegate.operators.model.catalog import Catalog, Customer, Limit, Meter, OnUnmetered, Plan, SpendCap
from tidegate.operators.model.errors import TidegateError
from tidegate.operators.model.periods import Billing
from tidegate.settings.catalog.fields import CustomerName, Name
from tidegate.settings.catalog.meters import MeterEntry, reads_as_text
from tidegate.settings.catalog.plans import CustomerEntry, LimitEntry, PlanEntry, SpendCapEntry
from tidegate.settings.catalog.yaml_nodes import TOP, Fault, Node, Place, read, read_section
from tidegate.settings.problems import MISSING, UNKNOWN, Strict, explain, unknown

# A file with half a million customers; anything larger is not a catalog.
BYTES_MAX: Final = 64 << 20
# An edit has two, and the versions before it are asked for while it is taken up.
PARSED_MAX: Final = 4
# Characters that are parsed in some milliseconds.
SHORT: Final = 1 << 14
SIMPLE: Final = re.compile(r"[A-Za-z0-9_-]+")
PLAN_NAME: Final[TypeAdapter[str]] = TypeAdapter(Name)
CUSTOMER_NAME: Final[TypeAdapter[str]] = TypeAdapter(CustomerName)
NO_EDGES: Final = Billing(())
Entry = TypeVar("Entry", bound=Strict)


@dataclass(frozen=True, slots=True)
class Problem:
    """One error of a catalog file; `line` and `column` count from 1, 0 where the file cannot be read."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class CatalogError(TidegateError):
    """A catalog that cannot be used; holds all problems, by line, and `str()` is one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.line, problem.column)))
        super().__init__("\n".join(map(str, self.problems)))


def load_catalog(path: Path | str) -> Catalog:
    """Return the catalog in the file; CatalogError where it cannot be read or is wrong in any part."""
    return parse_catalog(read_text(path), str(path))


def read_text(path: Path | str) -> str:
    """Return the file's text; CatalogError where it cannot be read, is too long or no UTF-8."""
    try:
        with Path(path).open("rb") as file:
            found = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise CatalogError([Problem(str(path), 0, 0, "", f"cannot be read: {error.strerror}")]) from None
    if len(found) > BYTES_MAX:
        raise CatalogError([Problem(str(path), 0, 0, "", f"needs {BYTES_MAX >> 20} MiB or less")])
    try:
        return found.decode("utf-8")
    except UnicodeDecodeError as error:
        line = found[: error.start].count(b"\n") + 1
        column = error.start - found.rfind(b"\n", 0, error.start)
        raise CatalogError([Problem(str(path), line, column, "", "needs UTF-8 text")]) from None


def parse_meters(text: str) -> tuple[Meter, ...]:
    """Return the meters of a catalog's text alone, those that can be read, without looking at its customers."""
    section = read_section(text, "meters")
    items = section.value if section is not None and isinstance(section.value, list) else []
    found = []
    for item in items:
        with suppress(ValidationError):
            found.append(MeterEntry.model_validate(item.plain()).meter())
    return tuple(found)


def parse_catalog(text: str, name: str = "catalog.yaml", *, is_applied: bool = False) -> Catalog:
    """Return the catalog that the YAML `text` says; CatalogError holds all that is wrong, in the file `name`.

    A text that this process has parsed lately is not parsed again; who comes while it is waits for it.
    `is_applied` reads a version that is in force already, so what was allowed when it was applied is not refused.
    """
    said = _PARSED.get(text)
    faults = said.faults if is_applied else said.faults + said.unbillable
    if faults:
        raise CatalogError(Problem(name, *mark, _written(place), message) for mark, place, message in faults)
    return said.catalog


def is_at_hand(text: str) -> bool:
    """Return whether `parse_catalog` of this text keeps nobody waiting; else a thread begins to parse it."""
    return len(text) <= SHORT or _PARSED.begin(text)


class _Said(NamedTuple):
    """What a text says, to be used only without faults; `unbillable` are those that no version may be applied with."""

    catalog: Catalog
    faults: list[Fault]
    unbillable: list[Fault]


def _parse(text: str) -> _Said:
    root, faults = read(text)
    if root is None:
        return _Said(Catalog(), faults or [Fault(TOP, (), "is empty; needs meters, plans and customers")], [])
    reading = _Reading(root, faults)
    catalog = reading.catalog()
    known = len(faults)
    reading.check_billing(catalog)
    return _Said(catalog, faults[:known], faults[known:])


def _uncollected(text: str) -> _Said:
    """Parse without the collector, which would go through a million nodes again and again, and find no cycle."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return _parse(text)
    finally:
        if was_on:
            gc.enable()


class _Parsed:
    """What the last few texts said, which gate, service and flow ask for by turns."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Said] = OrderedDict()
        self._under_way: set[str] = set()
        self._lock = Lock()
        # One at a time: two threads of one interpreter would only slow each other, and it is often one text.
        self._parsing = Lock()

    def get(self, text: str) -> _Said:
        found = self._find(text)
        if found is None:
            with self._parsing:
                found = self._find(text)
                if found is None:
                    found = self._add(text, _uncollected(text))
        return found

    def begin(self, text: str) -> bool:
        """Whether it is known; else it is parsed on a thread, if it is not already."""
        if self._find(text) is not None:
            return True
        with self._lock:
            if text not in self._under_way:
                self._under_way.add(text)
                Thread(target=self._finish, args=(text,), name="tidegate-parse", daemon=True).start()
        return False

    def _finish(self, text: str) -> None:
        try:
            self.get(text)
        finally:
            with self._lock:
                self._under_way.discard(text)

    def _find(self, text: str) -> _Said | None:
        with self._lock:
            if text in self._known:
                self._known.move_to_end(text)
            return self._known.get(text)

    def _add(self, text: str, found: _Said) -> _Said:
        with self._lock:
            self._known[text] = found
            if len(self._known) > PARSED_MAX:
                self._known.popitem(last=False)
        return found


_PARSED: Final = _Parsed()


class CatalogEntry(Strict):
    """The file's own level. What is in its parts is read one by one, so that all errors are found."""

    meters: list[Any] = Field(min_length=1, description="at least one meter, with name and aggregation")
    default_plan: Name | None = None
    plans: dict[str, Any] = Field(default_factory=dict)
    customers: dict[str, Any] = Field(default_factory=dict)
    on_unmetered: OnUnmetered = "count"


class _Reading:
    """One pass over the tree, part by part; adds what is wrong to `faults` and goes on."""

    def __init__(self, root: Node, faults: list[Fault]) -> None:
        self._root = root
        self._faults = faults
        # From the tree, so that what is wrong inside a meter or plan is not told again of its users.
        self._meters = {name for _, node in self._parts("meters") if (name := node.child("name"))}
        self._plans: dict[str, PlanEntry | None] = {str(place[-1]): None for place, _ in self._parts("plans")}

    def catalog(self) -> Catalog:
        """Return the catalog of the tree; call it only if no fault was found."""
        top = self._entry(CatalogEntry, self._root, ())
        meters = tuple(self._read_meters())
        plans = {plan.name: plan for plan in self._read_plans()}
        default_plan = self._read_default_plan()
        customers = {customer.name: customer for customer in self._read_customers(default_plan)}
        return Catalog(meters, plans, customers, default_plan, top.on_unmetered if top else "count")

    def check_billing(self, catalog: Catalog) -> None:
        """Refuse two customers that the provider would bill as one: their usage could not be distinguished there."""
        billed: dict[str, str] = {}
        for name, customer in catalog.customers.items():
            billed_as = customer.billing_id or name
            if billed_as in billed and (
                customer.billing_id or catalog.customers[billed[billed_as]].billing_id
            ):
                words = f"needs another id; customer {billed[billed_as]} is billed as {billed_as} too"
                key = ("billing_id",) if customer.billing_id else ()
                self._fault(("customers", name, *key), words)
            billed.setdefault(billed_as, name)

    def _read_meters(self) -> list[Meter]:
        lines: dict[str, int] = {}
        found: list[tuple[Place, Meter]] = []
        for place, node in self._parts("meters"):
            name = node.child("name")
            if name in lines:
                self._fault((*place, "name"), f"needs another name; line {lines[name]} has {name} too")
            elif name is not None:
                lines[name] = node.mark.line
            entry = self._entry(MeterEntry, node, place)
            if entry is not None:
                found.append((place, entry.meter()))
        meters = [meter for _, meter in found]
        for place, meter in found:
            if other := reads_as_text(meter, meters):
                self._fault(
                    (*place, "numbers"),
                    f"needs to be strict, as the meter {other} reads {meter.key} of {meter.event_name} as it stands, "
                    "and the billing provider is sent it once",
                )
        return meters

    def _read_plans(self) -> Iterator[Plan]:
        products: dict[str, str] = {}
        for place, node in self._parts("plans"):
            name = self._name(PLAN_NAME, place)
            self._check_meters(node, place)
            entry = self._plans[name] = self._entry(PlanEntry, node, place)
            if entry is not None:
                limits, spend_cap = self._limits(entry.limits, {}, place), _spend_cap(entry.spend_cap, None)
                if entry.billing_id is not None and entry.billing_id in products:
                    other = products[entry.billing_id]
                    self._fault((*place, "billing_id"), f"needs another id; plan {other} has it too")
                products[entry.billing_id or ""] = name
                yield Plan(name, entry.period.policy(), entry.zone, limits, spend_cap, entry.billing_id)

    def _read_default_plan(self) -> str | None:
        name = self._root.child("default_plan")
        plan = self._plan(name, ("default_plan",)) if name is not None else None
        if plan and plan.period.policy() == NO_EDGES:
            self._fault(("default_plan",), f"needs a plan with another period; {name} is billed by edges")
        return name

    def _read_customers(self, default_plan: str | None) -> Iterator[Customer]:
        for place, node in self._parts("customers"):
            name = self._name(CUSTOMER_NAME, place)
            self._check_meters(node, place)
            entry = self._entry(CustomerEntry, node, place)
            if entry is None:
                continue
            plan = entry.plan or default_plan
            if plan is None:
                self._fault((*place, "plan"), "is missing: the plan, as there is no default_plan")
                continue
            base = self._plan(plan, (*place, "plan")) if entry.plan else self._plans.get(plan)
            if base is None:
                continue
            period = entry.period.policy() if entry.period else None
            if (period or base.period.policy()) == NO_EDGES:
                self._fault((*place, "period"), "needs edges, as the period is billing and the plan has none")
            limits = self._limits(entry.limits, base.limits, place)
            spend_cap = _spend_cap(entry.spend_cap, base.spend_cap)
            billed_by = entry.billed_by.billed_by() if entry.billed_by else None
            yield Customer(name, plan, entry.zone, period, limits, entry.billing_id, spend_cap, billed_by)

    def _plan(self, name: str, place: Place) -> PlanEntry | None:
        if name not in self._plans:
            self._fault(place, f"the plan {unknown(name, list(self._plans))}")
        return self._plans.get(name)

    def _check_meters(self, node: Node, place: Place) -> None:
        limits = node.value.get("limits") if isinstance(node.value, dict) else None
        for meter in limits.value if limits is not None and isinstance(limits.value, dict) else ():
            if meter not in self._meters:
                self._fault((*place, "limits", meter), f"the meter {unknown(meter, sorted(self._meters))}")

    def _limits(
        self, entries: Mapping[str, LimitEntry], base: Mapping[str, LimitEntry], place: Place
    ) -> dict[str, Limit]:
        limits = {}
        for meter, entry in entries.items():
            here = (*place, "limits", meter)
            limit = limits[meter] = entry.over(base.get(meter)).limit()
            in_percent = any(threshold.percent is not None for threshold in limit.thresholds)
            if in_percent and limit.cap is None and limit.included is None:
                self._fault((*here, "thresholds"), "needs a cap or an included quantity to be percent of")
        return limits

    def _parts(self, section: str) -> list[tuple[Place, Node]]:
        """Return the meters, plans or customers, each with its place; none where the section is no such thing."""
        node, place = self._root.find((section,))
        match node.value if place else None:
            case dict(entries) if section != "meters":
                return [((section, name), entry) for name, entry in entries.items()]
            case list(items) if section == "meters":
                return [((section, index), item) for index, item in enumerate(items)]
            case _:
                return []

    def _name(self, names: TypeAdapter[str], place: Place) -> str:
        name = str(place[-1])
        try:
            return names.validate_python(name)
        except ValidationError as error:
            self._fault(place, "name " + explain(error.errors()[0]))
        return name

    def _entry(self, model: type[Entry], node: Node, place: Place) -> Entry | None:
        try:
            return model.model_validate(node.plain())
        except ValidationError as error:
            found = error.errors(include_url=False)
        for line in found:
            where = [part for part in line["loc"] if isinstance(part, str | int)]
            # Passed over are the tags of unions, which nobody wrote.
            inside, way = node.find(where)
            if line["type"] == MISSING:
                way = (*node.find(where[:-1])[1], where[-1])
            at_key = line["type"] in (MISSING, UNKNOWN)
            self._faults.append(Fault(inside.key if at_key else inside.mark, (*place, *way), line["msg"]))
        return None

    def _fault(self, place: Place, message: str) -> None:
        self._faults.append(Fault(self._root.find(place)[0].mark, place, message))


def _spend_cap(entry: SpendCapEntry | None, base: SpendCapEntry | None) -> SpendCap | None:
    return entry.over(base).spend_cap() if entry else None


def _written(place: Place) -> str:
    """`plans.pro.limits`, `meters[0].name`, `customers['a b'].plan`."""
    text = ""
    for part in place:
        if isinstance(part, str) and SIMPLE.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text
