"""Killed anywhere and started again, the flow leaves what it leaves unkilled: no event lost, none counted twice.

Half way through its input each run changes: it goes on under another catalog and a shorter lateness.

TIDEGATE_CRASH_SEEDS says how many kills are tried (3), TIDEGATE_CRASH_FIRST where to begin (0). Each seed is a run
that is killed at least once; a summary at the end says what was hit.
"""

import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.faults.support.edges import Edges, Stores
from tests.faults.support.harness import FILES, SQLITE, STARTS, Layout, Result, Run, random_kill, watched
from tests.faults.support.kill_orders import Kill, Met
from tests.reference.model import Model
from tests.reference.traffic import Case, changed_catalog, traffic
from tests.support.options import option
from tidegate.operators.model.catalog import Catalog

FIRST = int(option("TIDEGATE_CRASH_FIRST", "0"))
SEEDS = range(FIRST, FIRST + int(option("TIDEGATE_CRASH_SEEDS", "3")))
KILLS_PER_TRAFFIC = 6
LAYOUTS = {
    "threads": Layout(workers=2, files=3),
    "processes": Layout(processes=2, files=3),
    "aside": Layout(aside=True),
}
LAYOUT_SEEDS = SEEDS[: max(1, len(SEEDS) // 6)]

hits: Counter[str] = Counter()


class Change(NamedTuple):
    """What comes half way: what is read after it, the catalog with the time of its version, and the lateness."""

    lines: list[bytes]
    catalog: Catalog
    applied_at: int
    lateness: timedelta

    def befall(self, run: Run) -> None:
        lateness = f"{int(self.lateness.total_seconds())}s"
        run.change(self.lines, self.catalog, self.applied_at, LATENESS=lateness)


class Reference:
    """A run that nobody killed: its result, and how often it met each kind of operation before and after its change."""

    def __init__(self, folder: Path, seed: int, layout: Layout, timed: bool) -> None:
        self.case, self.change = halves_of(seed, timed)
        run = Run.prepared(folder, self.case, layout, FILES, SQLITE, **settings_of(seed))
        self.met, self.calls = [], []
        with watched(run) as wrong:
            for change in (None, self.change):
                if change:
                    change.befall(run)
                assert run.start(), run.said()
                self.met.append(run.met)
                self.calls.append(run.calls)
        assert not wrong
        self.result = run.result()


@cache
def case_of(seed: int) -> Case:
    """Some hundred kilobytes of traffic, without the huge lines, of which one would be a quarter of it."""
    case = traffic(seed, random.Random(seed).randint(700, 1200))
    return kept_of(case, lambda line: len(line) < 20_000)


def kept_of(case: Case, keeps: Callable[[bytes], bool]) -> Case:
    pairs = [(line, at) for line, at in zip(case.lines, case.sent_at, strict=True) if keeps(line)]
    return case._replace(lines=[line for line, _ in pairs], sent_at=[at for _, at in pairs])


def halves_of(seed: int, timed: bool) -> tuple[Case, Change]:
    """The first half of the traffic, and the change after it; `timed` leaves out lines with events without a time."""
    case = case_of(seed)
    if timed:
        # A file has no time of its own for them, as a topic has.
        whole = case
        case = kept_of(whole, lambda line: not is_untimed(whole, line))
    half = len(case.lines) // 2
    catalog = changed_catalog(random.Random(f"changed {seed}"), case.catalog)
    change = Change(case.lines[half:], catalog, case.sent_at[half], case.lateness / 2)
    return case._replace(lines=case.lines[:half]), change


def is_untimed(case: Case, line: bytes) -> bool:
    model = Model(case.catalog, case.lateness, "event")
    model.feed(line, 0, None)
    return "time_missing" in (reason for reason, _ in model.dead)


def settings_of(seed: int) -> dict[str, str]:
    """Some runs force each write to disk: slower, with more places to die at."""
    return {"SYNC": "true" if seed % 3 == 1 else "false", "SHARDS": ("4", "1", "2")[seed % 3]}


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    """A folder that stays as long as this module; on failure what a run left can be looked at."""
    folder = Path(mkdtemp(prefix="tidegate-crash-"))
    yield folder
    if not option("TIDEGATE_CRASH_KEEP"):
        shutil.rmtree(folder)


_references: dict[tuple[int, Layout, bool], Reference] = {}


def reference(room: Path, seed: int, layout: Layout, timed: bool = False) -> Reference:
    """The unkilled run, made once per traffic and layout; whether inputs are parted does matter."""
    key = seed, layout, timed
    if key not in _references:
        name = f"reference-{seed}-{'-'.join(map(str, layout))}-{timed}"
        _references[key] = Reference(room / name, *key)
    return _references[key]


def crash(
    room: Path,
    name: str,
    seed: int,
    layout: Layout,
    edges: Edges = FILES,
    stores: Stores = SQLITE,
    met_there: Callable[[Reference, Met], Met] = lambda _, met: met,
    start: Callable[[Run, Kill, int], object] = Run.start,
    timed: bool = False,
) -> None:
    """Kill a run here and there until it is let go on, and compare what it left with what an unkilled one on files did.

    `met_there` gives what a run with these edges and stores meets, for one on files; `start` runs it with a kill.
    """
    traffic_seed = seed // KILLS_PER_TRAFFIC
    expected = reference(room, traffic_seed, layout, timed)
    rng = random.Random(f"{name} {seed}")
    run = Run.prepared(
        room / f"{name}-{seed}", expected.case, layout, edges, stores, **settings_of(traffic_seed)
    )
    kills: list[list[Kill]] = [[], []]

    def one_more(half: int, resumed: bool) -> None:
        met = met_there(expected, expected.met[half])
        kills[half].append(random_kill(rng, met, expected.calls[half], resumed=resumed))

    one_more(rng.randrange(2), False)
    while rng.random() < 0.55 and len(kills[0]) + len(kills[1]) < STARTS:
        one_more(rng.randrange(2), True)
    with watched(run) as wrong:
        for half in range(2):
            if half:
                expected.change.befall(run)
            for kill in kills[half]:
                start(run, kill, rng.randrange(layout.processes))
            # Once more, also where all kills were missed: a start with nothing new changes nothing.
            assert run.start(), run.said()
    count(run.kills, len(kills[0]) + len(kills[1]))
    described = f"{name} {seed}, {layout}, kills {run.kills} in {run.folder}"
    assert not wrong, (described, wrong[:5])
    same(expected, run, described)
    shutil.rmtree(run.folder)


def same(expected: Reference, run: Run, described: str) -> None:
    """Assert that the run left what an unkilled one on files did."""
    result = run.result()
    assert not expected.result.differences(result), (described, expected.result.differences(result))
    conserved(result)


def count(kills: list[Kill], starts: int) -> None:
    """Remembers what was hit, for the summary."""
    numbers = re.compile(r"-?[0-9]+")
    hits.update(
        "any time" if kill.kind == "time" else f"{numbers.sub('', kill.kind)}, {kill.phase}" for kill in kills
    )
    hits["(missed)"] += starts - len(kills)


class _Bill(msgspec.Struct):
    event_id: str
    timestamp: str


def conserved(result: Result) -> None:
    """Every event ended in one way, every reading in one way."""
    counted = result.counted
    ends = ("rejects", "too_late", "duplicates", "conflicts", "accepted")
    assert counted["events"] == sum(counted[name] for name in ends)
    assert counted["accepted"] == result.billed.total()
    for name, value in counted.items():
        if name.startswith("matching:"):
            meter = name.removeprefix("matching:")
            assert value == counted[f"counted:{meter}"] + counted[f"corrected:{meter}"], name


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_run_leaves_what_an_unkilled_one_leaves(room: Path, seed: int) -> None:
    crash(room, "killed", seed, Layout())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", LAYOUT_SEEDS)
def test_so_it_does_spread_over_threads_and_processes(room: Path, seed: int, layout: str) -> None:
    """Where one process of a cluster dies the others stop as well; all are started again."""
    crash(room, layout, seed, LAYOUTS[layout])


def test_the_unkilled_run_is_what_the_model_says(room: Path) -> None:
    """Else both might be wrong in the same way."""
    seed = FIRST // KILLS_PER_TRAFFIC
    found = reference(room, seed, Layout())
    model = Model(found.case.catalog, found.case.lateness, "event")
    for line in found.case.lines:
        model.feed(line, 0, None)
    model.now.restart(found.change.lateness // timedelta(microseconds=1), "event")
    model.restart(found.change.catalog, found.change.applied_at)
    for line in found.change.lines:
        model.feed(line, 0, None)
    wanted = {(key[0], key[2], key[1], key[3]): total for key, total in model.totals.items()}
    wanted = {key: total._replace(steady=found.result.totals[key].steady) for key, total in wanted.items()}
    assert found.result.totals == wanted
    kinds = Counter(msgspec.json.decode(line)["kind"] for line in found.result.alerts.elements())
    assert kinds.total() - kinds["unmetered"] == len(model.alerts)
    assert found.result.dead.total() == len(model.dead)
    assert found.result.billed.total() == len(model.accepted)
    conserved(found.result)
    met = found.met[0].operations
    assert met["journal append"] >= 5 and met["store COMMIT"] >= 5, met


def test_alerts_and_bills_have_ids_of_their_own(room: Path) -> None:
    """So that whoever receives one twice can tell.

    An identity that comes again hours away is another event, docs/semantics.md; within an hour it never is.
    """
    result = reference(room, FIRST // KILLS_PER_TRAFFIC, Layout()).result
    alerts = [msgspec.json.decode(line, type=dict[str, Any]) for line in result.alerts.elements()]
    # Of an unmetered cause each shard has the same.
    own = [alert["id"] for alert in alerts if alert["customer"]]
    assert len(own) == len(set(own)) > 0
    bills = [msgspec.json.decode(line, type=_Bill) for line in result.billed.elements()]
    assert len(bills) == len({(bill.event_id, bill.timestamp[:13]) for bill in bills}) > 0
