"""The demo's screen: what `Usage` knows, as a page of a given width and height. It draws and does nothing else."""

from collections.abc import Iterator, Mapping
from decimal import Decimal

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tidegate.operators.gate.customer_limits import CatalogLimits
from tidegate.operators.gate.decision import AccountView
from tidegate.operators.model.aggregates import ADDITIVE
from tidegate.operators.model.catalog import Catalog, Customer, Plan
from tidegate.serving.views.balance import ENDS
from tidegate.serving.views.formatting import age, brief, grouped
from tidegate.serving.views.limit_status import Level, LimitStatus, bill, limit_status, view_of, worst_status
from tidegate.serving.views.usage import Usage

WIDE = 110
DIM = "grey50"
TRACK = "grey27"
ACCENT = "#5fafaf"
COLOUR = {
    Level.FREE: ACCENT,
    Level.NOTED: "#d7af5f",
    Level.OVERAGE: "#af87d7",
    Level.OVER: "#d7875f",
    Level.GRACE: "#d7875f",
    Level.DENIED: "#d75f5f",
}
# How long what is new stands out.
FRESH_US = 6_000_000
ALERT_WORDS = {
    "threshold": "passed",
    "cap_reached": "reached its cap",
    "cap_released": "is below its cap again",
    "overage_started": "pays overage from",
    "overage_ended": "pays no overage",
    "correction": "had a closed period corrected, times",
}


class Screen:
    """Pages for one catalog. It remembers when it first saw each denial, to let new ones stand out."""

    def __init__(self, catalog: Catalog, usage: Usage, footer: str) -> None:
        self._catalog = catalog
        self._bounds = CatalogLimits(catalog, 0)
        self._views: dict[str, AccountView] = {}
        self._usage = usage
        self._footer = footer
        self.refused = 0
        """Requests that the gate has refused."""
        self._denied: dict[tuple[str, str], int] = {}
        owners: list[Plan | Customer] = [*catalog.plans.values(), *catalog.customers.values()]
        limited = [meter for meter in catalog.meters if any(meter.name in owner.limits for owner in owners)]
        self._limited = [meter.name for meter in limited]
        # Those that fill a bar; there is no room for all.
        self._shown = [meter.name for meter in limited if meter.kind in ADDITIVE]
        # By which customers are great or small.
        names = (meter.name for meter in catalog.meters)
        self._first = next(iter((*self._shown, *self._limited, *names)), "")

    def denials(self) -> dict[tuple[str, str], int]:
        """Return who would be denied which meter now, and since when (µs since the epoch)."""
        return self._denied

    def owed(self, customer: str) -> Decimal:
        """Return a customer's bill, as of the last `look`."""
        return bill(self._views[customer])

    def look(self, now: int) -> None:
        """Take up what usage is now, and note who is currently denied what."""
        self._views = {
            customer: view_of(self._bounds.find(customer), totals, self._usage.held.get(customer), now)
            for customer, totals in self._usage.totals.items()
        }
        seen = {
            (customer, meter)
            for customer, view in self._views.items()
            for meter in self._limited
            if limit_status(view, meter).level is Level.DENIED
        }
        self._denied = {pair: self._denied.get(pair, now) for pair in seen}

    def page(self, now: int, running_us: int, width: int, height: int) -> RenderableType:
        """All there is to see, in `width` columns and at most `height` lines."""
        wide = width >= WIDE
        rows = max(3, min(24, height - (16 if wide else 17)))
        return Group(
            self._title(running_us),
            Rule(style=TRACK),
            self._numbers(now, wide),
            Text(),
            self._banner(now, wide),
            Text(),
            self._customers(now, width, rows),
            Text(),
            self._news(wide),
            Text(f" {self._footer}", style=DIM, overflow="ellipsis", no_wrap=True),
        )

    def _title(self, running_us: int) -> Table:
        line = _grid(expand=True)
        line.add_column()
        line.add_column(justify="right")
        name = Text.assemble(
            (" ≋ tidegate", f"bold {ACCENT}"), ("  a made-up AI product, metered as it is used", DIM)
        )
        seconds = running_us // 1_000_000
        line.add_row(name, Text(f"{seconds // 60:02}:{seconds % 60:02} ", style=DIM))
        return line

    def _numbers(self, now: int, wide: bool) -> Table:
        usage = self._usage
        sums = usage.sums
        behind = age(now - usage.as_of) if usage.as_of else "…"
        shown = [
            ("events", f"{sums['events']:,}"),
            ("per second", f"{usage.rate():,.0f}"),
            ("newest is", f"{behind} old"),
        ]
        if wide:
            shown += [("customers", f"{len(usage.totals):,}"), ("late", f"{usage.late:,}")]
        shown += [(end.replace("_", " "), f"{sums[end]:,}") for end in ENDS if end != "accepted"]
        shown.append(("refused", f"{self.refused:,}"))
        table = _grid(expand=True)
        for _ in shown:
            table.add_column(ratio=1, no_wrap=True)
        table.add_row(*(Text(f" {label}", style=DIM) for label, _ in shown))
        table.add_row(*(Text(f" {value}", style="bold") for _, value in shown))
        return table

    def _banner(self, now: int, wide: bool) -> Text:
        """Return the greatest customer who is denied something, on a line of its own."""
        greatest = {pair[0]: pair for pair in self._denied}
        if not greatest:
            return Text()
        customer, meter = greatest[
            max(greatest, key=lambda name: (self._usage.total(name, self._first), name))
        ]
        cap = self._catalog.limit_of(customer, meter).cap
        ago = now - self._denied[customer, meter]
        since = f", for {age(ago - ago % 1_000_000)} now" if wide else ""
        return Text.assemble(
            (" ▲ ", COLOUR[Level.DENIED]),
            (f"{customer} is at its cap of {grouped(str(cap))} {meter}: ", f"bold {COLOUR[Level.DENIED]}"),
            (f"its requests are refused{since}", "default"),
            no_wrap=True,
            overflow="ellipsis",
        )

    def _customers(self, now: int, width: int, rows: int) -> Table:
        wide = width >= WIDE
        meters = self._shown[: 2 if not wide else 3 if width < 150 else 4]
        state_width = 20 if wide else 17
        # What the other columns and the numbers in this one leave.
        left = width - len(" customer  scale  12,345.67  ") - state_width
        cell = left // len(meters) - 2 if meters else 0
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=DIM)
        table.add_column(" customer", width=9, no_wrap=True, overflow="ellipsis")
        table.add_column("plan", width=5, no_wrap=True, overflow="ellipsis", style=DIM)
        for meter in meters:
            table.add_column(meter.replace("_", " "), width=cell, no_wrap=True)
        table.add_column("bill", justify="right", width=9, no_wrap=True)
        table.add_column("state", width=state_width, no_wrap=True)
        bar = cell - (12 if wide else 6)
        for customer in self._greatest(rows):
            view = self._views[customer]
            state = worst_status(view)
            cells = [_gauge(limit_status(view, meter), bar, wide) for meter in meters]
            owed = self.owed(customer)
            colour = COLOUR[state.level] if state.level is Level.DENIED else "default"
            name = Text(f" {customer}", style=f"bold {colour}")
            money = Text(f"{owed:,.2f}" if owed else "–", style="default" if owed else DIM)
            table.add_row(
                name, self._catalog.plan_of(customer).name, *cells, money, self._state(customer, state, now)
            )
        if not self._usage.totals:
            table.add_row(Text(" waiting for the first event …", style=DIM))
        return table

    def _state(self, customer: str, state: LimitStatus, now: int) -> Text:
        colour = COLOUR[state.level]
        if state.level is not Level.DENIED:
            return Text(state.words, style=DIM if state.level is Level.FREE else colour)
        fresh = now - self._denied.get((customer, state.meter), now) < FRESH_US
        return Text.assemble(
            (
                f" {state.words} " if fresh else state.words,
                f"bold reverse {colour}" if fresh else f"bold {colour}",
            ),
            (f" {state.meter}", colour),
            overflow="ellipsis",
        )

    def _news(self, wide: bool) -> RenderableType:
        alerts = Group(Text(" alerts", style=DIM), *self._alert_lines(5))
        if not wide:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self._usage.dead.most_common(4))
            return Group(
                alerts,
                Text(f" dead letters  {reasons or 'none'}", style=DIM, no_wrap=True, overflow="ellipsis"),
            )
        dead = [f"{count:>7,}  {reason}" for reason, count in self._usage.dead.most_common(5)]
        both = _grid(expand=True)
        both.add_column(ratio=3)
        both.add_column(ratio=1)
        both.add_row(
            alerts, Group(Text("dead letters by reason", style=DIM), *map(Text, dead or ["      –"]))
        )
        return both

    def _alert_lines(self, most: int) -> Iterator[Text]:
        for alert in list(self._usage.alerts)[-1 : -most - 1 : -1]:
            if alert["kind"] == "unmetered":
                yield _unmetered_line(alert)
                continue
            resolved = alert["state"] == "resolved"
            level = Level.DENIED if alert["kind"] == "cap_reached" else Level.NOTED
            is_plain = resolved or alert["kind"] in ("cap_released", "overage_ended", "correction")
            said = (
                "is back below" if resolved and alert["kind"] == "threshold" else ALERT_WORDS[alert["kind"]]
            )
            at = alert["level"] if alert["level"].endswith("%") else grouped(alert["level"])
            yield Text.assemble(
                (f" {alert['at'][11:19]} ", DIM),
                (f"{alert['customer']} ", "bold"),
                (f"{said} {at}", DIM if is_plain else COLOUR[level]),
                (f" of {alert['meter']}", "default"),
                (f", now at {grouped(alert['total'])}", DIM),
                no_wrap=True,
                overflow="ellipsis",
            )
        yield from (Text() for _ in range(most - min(most, len(self._usage.alerts))))

    def _greatest(self, rows: int) -> list[str]:
        """Return those who used most of the first meter, in the order of what they used."""
        used = {customer: self._usage.total(customer, self._first) for customer in self._views}
        return sorted(used, key=lambda customer: (used[customer].copy_negate(), customer))[:rows]


def _gauge(at: LimitStatus, width: int, percent: bool) -> Text:
    """Return a bar, the quantity, and with `percent` its share of the limit: `━━━━╸━━━  126k  63%`."""
    colour = COLOUR[at.level]
    gauge = Text()
    if at.share is None:
        gauge.append(" " * width)
    else:
        halves = int(min(at.share, Decimal(100)) * width * 2 / 100)
        filled = "━" * (halves // 2) + "╸" * (halves % 2)
        gauge.append(filled, style=colour)
        gauge.append("━" * (width - len(filled)), style=TRACK)
    gauge.append(f" {brief(at.total):>5}")
    if percent and at.share is not None:
        gauge.append(f" {min(at.share, Decimal(9999)):>4f}%", style=colour if at.level else DIM)
    return gauge


def _grid(expand: bool) -> Table:
    return Table.grid(expand=expand)


def _unmetered_line(alert: Mapping[str, str]) -> Text:
    """Return a line for an event that was accepted and not metered."""
    return Text.assemble(
        (f" {alert['at'][11:19]} ", DIM),
        (alert.get("text", "An event is not metered"), COLOUR[Level.NOTED]),
        no_wrap=True,
        overflow="ellipsis",
    )
