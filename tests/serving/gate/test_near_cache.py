"""The near cache never answers with more than its staleness: proven by a machine with a clock of its own."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.serving.gate.fakes import FakeHolds
from tidegate.operators.gate.customer_limits import CatalogLimits
from tidegate.operators.gate.decision import AccountView
from tidegate.operators.model.catalog import Catalog, Plan
from tidegate.operators.model.ports import Account, News
from tidegate.serving.gate.cache_follower import Watch
from tidegate.serving.gate.catalog_source import GateCatalog
from tidegate.serving.gate.freshness import Freshness
from tidegate.serving.gate.near_cache import DROPS_MAX, NEVER, Near
from tidegate.serving.gate.pending import Pending
from tidegate.serving.gate.tally import Tally

STALENESS = 1.0
BOUNDS = CatalogLimits(Catalog((), {"p": Plan("p")}, default_plan="p"), 0)


def view_of(customer: str, revision: int) -> AccountView:
    return AccountView(BOUNDS.find(customer), Account({}, {}, None, 0, revision), 0, 10)


class Channel:
    """A feed that tells what was committed before a wait began, and of what comes meanwhile all or nothing."""

    def __init__(self, machine: "Staleness", from_: int) -> None:
        self.machine = machine
        self.told = from_
        self.takes = 0.0
        self.late = False

    def wait(self, seconds: float) -> News:
        until = len(self.machine.log)
        self.machine.now += self.takes / 2
        # What is committed while it waits may be told as well, or only by the next wait.
        self.machine.commit("b")
        self.machine.now += self.takes / 2
        if self.late:
            until = len(self.machine.log)
        customers, self.told = frozenset(self.machine.log[self.told : until]), until
        return News(customers, 0)

    def close(self) -> None:
        pass


class Staleness(RuleBasedStateMachine):
    """Accounts change, are read and kept in any order, while the channel works, waits, hangs, breaks and comes back."""

    customers = st.sampled_from(["a", "b", "c"])

    @initialize()
    def begin(self) -> None:
        self.now = 100.0
        self.near = Near(STALENESS, customers_max=2)
        store: Any = FakeHolds()
        catalogs = GateCatalog(store, Catalog(), lambda: None)
        parts = (self.near, catalogs, Freshness(lambda: 0), Pending())
        self.watch = Watch(store, *parts, Tally(self.clock), self.clock)
        self.log: list[str] = []
        # When each revision of an account ended: the revision is the place in the list.
        self.ended: dict[str, list[float]] = {name: [] for name in "abc"}
        self.readings: list[tuple[str, int, int]] = []
        self.channel: Channel | None = None

    def clock(self) -> float:
        return self.now

    @rule(customer=customers)
    def commit(self, customer: str) -> None:
        self.ended[customer].append(self.now)
        self.log.append(customer)

    @rule(customer=customers)
    def begin_reading(self, customer: str) -> None:
        """The ticket first, then what the store has."""
        self.readings.append((customer, self.near.ticket(), len(self.ended[customer])))

    @precondition(lambda self: self.readings)
    @rule(which=st.integers(0, 9))
    def end_reading(self, which: int) -> None:
        customer, ticket, revision = self.readings.pop(which % len(self.readings))
        self.near.put(customer, view_of(customer, revision), ticket)

    @rule(customer=customers)
    def read(self, customer: str) -> None:
        self.near.put(customer, view_of(customer, len(self.ended[customer])), self.near.ticket())

    @precondition(lambda self: self.channel)
    @rule(takes=st.sampled_from([0.0, 0.01, 0.6, 2.0]), late=st.booleans())
    def the_channel_waits(self, takes: float, late: bool) -> None:
        assert self.channel
        self.channel.takes, self.channel.late = takes, late
        self.watch.turn(self.channel)

    @precondition(lambda self: self.channel)
    @rule()
    def the_channel_breaks(self) -> None:
        self.channel = None
        self.near.lose()

    @precondition(lambda self: not self.channel)
    @rule()
    def the_channel_opens(self) -> None:
        """It knows nothing of what came before."""
        self.channel = Channel(self, len(self.log))
        self.near.lose()

    @rule(seconds=st.sampled_from([0.001, 0.3, 0.9, 1.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_older_than_it_may_be(self) -> None:
        for customer, ended in self.ended.items():
            view = self.near.get(customer, self.now)
            if view is not None:
                revision = view.account.revision
                assert revision == len(ended) or ended[revision] >= self.now - STALENESS
        assert len(self.near) <= 2


TestStaleness = Staleness.TestCase
TestStaleness.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_what_is_proven_and_untouched_is_kept() -> None:
    """Else it would be right, and of no use."""
    near = Near(STALENESS)
    near.put("a", view_of("a", 1), near.ticket())
    assert near.get("a", 5.0) is None
    near.prove(5.0)
    near.drop(["b"])
    for now in (5.0, 6.0):
        found = near.get("a", now)
        assert found is not None and found.account.revision == 1
    assert near.get("a", 6.01) is None and near.get("b", 5.0) is None


def test_a_view_read_before_a_drop_of_its_customer_is_not_kept() -> None:
    near = Near(STALENESS)
    near.prove(5.0)
    ticket = near.ticket()
    near.drop(["a"])
    near.put("a", view_of("a", 1), ticket)
    near.put("b", view_of("b", 1), ticket)
    assert near.get("a", 5.0) is None and near.get("b", 5.0) is not None
    near.drop(None)
    near.put("c", view_of("c", 1), ticket)
    assert near.get("b", 5.0) is None and near.get("c", 5.0) is None


def test_when_more_is_dropped_than_can_be_remembered_nothing_read_meanwhile_is_kept() -> None:
    near = Near(STALENESS)
    near.prove(5.0)
    ticket = near.ticket()
    near.drop(["a"])
    near.drop(str(n) for n in range(DROPS_MAX))
    assert len(near._dropped) <= DROPS_MAX
    near.put("a", view_of("a", 1), ticket)
    assert near.get("a", 5.0) is None
    near.put("a", view_of("a", 2), near.ticket())
    assert near.get("a", 5.0) is not None


def test_before_anything_is_proven_nothing_is_answered() -> None:
    near = Near(STALENESS)
    assert near.proven == NEVER
    near.put("a", view_of("a", 1), near.ticket())
    assert near.get("a", -1e300) is None


class Interrupted(dict[str, AccountView]):
    """Between the look for a view and its use, another thread drops it and proves that it was right to."""

    near: Near

    def get(self, customer: str, default: Any = None) -> Any:
        found = super().get(customer, default)
        self.near.drop([customer])
        self.near.prove(10.0)
        return found


def test_what_is_proven_after_a_view_was_found_says_nothing_of_it() -> None:
    near = Near(STALENESS)
    near.prove(5.0)
    near.put("a", view_of("a", 1), near.ticket())
    near._views = Interrupted(near._views)
    near._views.near = near
    assert near.get("a", 10.0) is None


class Scripted:
    """A feed that takes its time, and looks at what the cache would answer meanwhile."""

    def __init__(self, near: Near, watch_: list[Watch]) -> None:
        self.now = 100.0
        self.near, self._watch = near, watch_
        self.seen: list[AccountView | None] = []
        self.proven: list[float] = []

    def wait(self, seconds: float) -> News:
        self.proven.append(self.near.proven)
        self.seen.append(self.near.get("a", self.now))
        self.now += 0.5
        if len(self.seen) == 3:
            self._watch[0].stop()
        return News(frozenset(), 0)

    def close(self) -> None:
        pass


def test_what_was_read_while_the_feed_was_opened_is_not_kept_and_proof_begins_before_each_wait() -> None:
    """A change between that reading and the opening is told by nobody; nor is one in the middle of a wait, yet."""
    near, watches = Near(10.0), list[Watch]()
    feed = Scripted(near, watches)
    store: Any = FakeHolds()

    def opened() -> Scripted:
        near.put("a", view_of("a", 1), near.ticket())
        return feed

    store.feed = opened
    watches.append(
        Watch(
            store,
            near,
            GateCatalog(store, Catalog(), lambda: None),
            Freshness(lambda: 0),
            Pending(),
            Tally(lambda: feed.now),
            lambda: feed.now,
        )
    )
    watches[0]._run()
    assert feed.seen == [None, None, None]
    assert feed.proven == [NEVER, 100.0, 100.5]
