"""What befalls a world, one change at a time: each a function that leaves the world as it should be after it."""

import signal
import time
from collections.abc import Callable
from contextlib import closing

from tests.faults.changes.forks import Process
from tests.faults.changes.oracle import MINUTE
from tests.faults.changes.traffic import CUSTOMERS, DAY, METERS
from tests.faults.changes.world import DURATION, PATIENCE, Fault, World
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.store import SqliteReader
from tidegate.flows.runtime.clock_guard import LOOK_EVERY_S
from tidegate.operators.model.ports import Adjustment

ODD_QUANTITIES = (
    "0",
    "-1",
    "1e30",
    "-1e29",
    "0.000000000000000000000001",
    "1e-30",
    "NaN",
    "",
    "x",
    "9" * 60,
    "1e999999999",
)
SPINNING_S = 5
"""A flow that is busy for so many seconds on end, with nothing to do, spins."""
ODD_TIMES = (0, -(10**17), 10**17, 978_307_200_000_000, 4_102_444_799_999_999, 1 << 62)
WRONG_SETTINGS = (
    {"LATENESS": "36d"}, {"LATENESS": "-1h"}, {"SHARDS": "3"}, {"SHARDS": "8"}, {"RECOVERY_PARTS": "2"},
    {"CLOCK": "sun"}, {"FUTURE": "2d"}, {"SOURCE": "file:none-*.ndjson"}, {"SOURCE": "ftp:x"}, {"STORE": "sqlite:"},
    {"PAYLOAD_BYTES_MAX": "1"}, {"SURPRISE": "1"}, {"SOURCE": "file:dead.ndjson"}, {"EPOCH": "1500ms"},
)  # fmt: skip


def change_catalog(world: World) -> None:
    """Another catalog at the next start, or one that is wrong."""
    world.set_catalog(world.catalogs.change(world.now()))


def change_settings(world: World) -> None:
    """Another setting that state depends on, or may."""
    rng = world.rng
    name, texts = rng.choice(
        (
            ("LATENESS", ("0", "1h", "6h", "1d", "3d", "35d")), ("CLOCK", ("auto", "wall", "event")),
            ("FUTURE", ("0", "5m", "1h")), ("POLL_BYTES", ("4KiB", "64KiB", "16MiB")),
            ("PAYLOAD_BYTES_MAX", ("1024", "4096", "1048576")), ("COALESCE", ("0", "3ms", "200ms")),
            ("STORE_ASIDE", ("0", "1")), ("SOURCE", ("file:[ab].ndjson", "file:a.ndjson", "file:b.ndjson")),
            ("SYNC", ("true", "false")), ("EPOCH", ("1s", "10s")),
        )
    )  # fmt: skip
    world.settings[name] = rng.choice(texts)
    note_settings(world)


def note_settings(world: World) -> None:
    """Let the oracle know the extremes."""
    bounds = world.oracle.bounds
    bounds.lateness_min = min(bounds.lateness_min, DURATION[world.settings["LATENESS"]])
    bounds.future_max = max(bounds.future_max, DURATION[world.settings["FUTURE"]])


def refuse_settings(world: World) -> None:
    """A start with what can't be, which leaves everything as it was."""
    if world.store.exists():
        world.refused(**world.rng.choice(WRONG_SETTINGS))


def set_clock(world: World) -> None:
    """The wall clock is set, ahead or back."""
    if world.forks.clock is not None:
        world.set_clock(world.rng.choice((0, 0, -2, 2, 3)) * 86_400 + world.rng.choice((0, 0, 3600)))


def adjust(world: World) -> None:
    """Adjustments: plain ones, and whatever else the control log may hold."""
    rng = world.rng
    for _ in range(rng.choice((1, 1, 4))):
        world.adjust(plain_adjustment(world) if rng.random() < 0.5 else odd_adjustment(world))
    if world.applied and rng.random() < 0.5:
        # An operator who put a store back asks for its adjustments again, which count once.
        world.adjust(rng.choice(list(world.applied.values())))


def plain_adjustment(world: World) -> Adjustment:
    rng = world.rng
    adding = [meter for meter in world.edition.meters if meter.kind in ("count", "sum")]
    if not adding or world.edition.may_be_refused:
        return odd_adjustment(world)
    return Adjustment(
        id=f"plain {rng.getrandbits(40)}",
        customer=rng.choice(CUSTOMERS),
        meter=rng.choice(adding).name,
        at=world.now() - rng.randrange(30 * MINUTE),
        quantity=rng.choice(("1", "-1", "2.5", "-100", "1000000")),
        reason="plain",
        by="test",
    )


def odd_adjustment(world: World) -> Adjustment:
    rng = world.rng
    return Adjustment(
        id=rng.choice(("same", "", "x" * 2000, f"odd {rng.getrandbits(40)}", f"odd {rng.getrandbits(40)}")),
        customer=rng.choice((*CUSTOMERS, "", "nobody", "y" * 300)),
        meter=rng.choice((*(meter.name for meter in METERS), "no such", "")),
        at=rng.choice((*ODD_TIMES, world.now() - rng.randrange(60 * DAY))),
        quantity=rng.choice(ODD_QUANTITIES),
        reason="odd",
        by="test",
    )


def lose_store(world: World) -> None:
    """The store is gone, with its control log, which begins again."""
    if world.store.exists() and world.edition.meters and not world.edition.may_be_refused:
        world.lose_store()


def ask_for_totals(world: World) -> None:
    """What `tidegate store rebuild` asks for."""
    if world.store.exists():
        with closing(SqliteControl(world.store)) as log:
            log.resend()


def back_up(world: World) -> None:
    """The documented backup of all of it, made or put back."""
    if world.saved is not None:
        world.restore()
    elif world.store.exists() and not world.was_lost:
        world.save()


def follow(world: World) -> None:
    """Run with `follow`: events and changes come while it runs, then it idles, and is stopped in order."""
    rng = world.rng
    process = world.start(SOURCE=f"{world.settings['SOURCE']}?follow=true")
    for _ in range(rng.choice((1, 1, 2))):
        world.send(rng.randint(1, 30))
        settle(world, process)
        match rng.randrange(4):
            case 0:
                change_catalog_live(world)
            case 1:
                process = set_clock_live(world, process)
            case 2:
                adjust(world)
    settle(world, process)
    if rng.random() < 0.3:
        idle(process)
    stop(world, process)
    # Where there was nothing to read it may have been stopped before it began.
    world.run()


def set_clock_live(world: World, process: Process) -> Process:
    """Set the clock, which ends a flow if it goes back; the flow that runs then."""
    before = world.ahead
    set_clock(world)
    # Ahead and back between two looks of the guard would be no change to it.
    time.sleep(5 * LOOK_EVERY_S)
    if world.ahead > before - 60:
        return process
    if world.ended(process) == 0 or "set back" not in process.words():
        raise Fault("a flow goes on though its clock was set back")
    return world.start(SOURCE=f"{world.settings['SOURCE']}?follow=true")


def change_catalog_live(world: World) -> None:
    """Apply another catalog while the flow runs, and wait until it decodes by it."""
    edition = world.catalogs.change(world.now())
    world.adopt_in_force()
    world.check_input()
    world.set_catalog(edition)
    number = catalog_number(world)
    # A file is applied once it has been the same for a while, unless it is wrong or changes nothing.
    deadline = time.monotonic() + (1.5 if edition.may_be_refused else 20)
    while time.monotonic() < deadline and catalog_number(world) == number:
        time.sleep(0.05)
    probe = Adjustment(
        id=f"probe {world.rng.getrandbits(40)}", customer="acme", meter="no such", at=world.now(), quantity="1",
        reason="odd", by="test",
    )  # fmt: skip
    world.adjust(probe)
    wait_until(lambda: noted(world, probe.id), "an adjustment has no note")
    time.sleep(0.1)
    world.adopt_in_force()


def catalog_number(world: World) -> int:
    with closing(SqliteControl(world.store)) as log:
        return log.catalog_number()


def noted(world: World, id: str) -> bool:
    with closing(SqliteReader(world.store)) as reader:
        return any(note.id == id for note in reader.notes("adjustment", None, 100_000))


def settle(world: World, process: Process) -> None:
    """Wait until the flow has counted all that it was sent."""
    wanted = world.oracle.counters["events"] + world.pending()

    def counted() -> bool:
        if process.poll() is not None:
            world.ended(process, 0)
            raise Fault(f"the flow ends by itself: {process.words()[-2000:]}")
        return world.store.exists() and world.counted_events() >= wanted

    wait_until(counted, f"not all of {wanted} events are counted")


def stop(world: World, process: Process) -> None:
    """Stop it in order; one that has only begun to start has nothing to end in order."""
    process.send(signal.SIGTERM)
    process.wait(PATIENCE)
    allowed = (0,) if process.words() else (0, -signal.SIGTERM)
    if world.ended(process, *allowed) not in allowed:
        raise Fault(f"the flow that was stopped in order ends with an error: {process.words()[-1000:]}")


def idle(process: Process) -> None:
    """A flow with nothing to do needs next to no processor time, once it is done with what just changed."""
    shares: list[float] = []
    while len(shares) < SPINNING_S:
        before, began = process.cpu(), time.monotonic()
        time.sleep(1)
        shares.append((process.cpu() - before) / (time.monotonic() - began))
        if shares[-1] <= 0.5:
            return
    raise Fault(f"the flow spins while it idles: {', '.join(f'{share:.0%}' for share in shares)} of a core")


def wait_until(holds: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise Fault(complaint)
        time.sleep(0.02)
