"""A flow whose world changes at random: nothing ends it, nothing spins, and its totals stay exact.

Each seed is a world of its own (tests/faults/changes/): odd events, control records, catalogs, settings, clocks,
kills, lost stores and backups, in any order, checked after each run against an oracle that is written from the docs.
TIDEGATE_CHANGES_SECONDS says how long (60; 0 for one world), TIDEGATE_CHANGES_FIRST with which seed to begin (0) and
TIDEGATE_CHANGES_ROUNDS how many rounds a world has (12). A seed that fails is run again by the command in its message.
"""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.faults.changes.forks import Forks
from tests.faults.changes.play import play
from tests.faults.changes.world import World
from tests.support.options import option

SECONDS = float(option("TIDEGATE_CHANGES_SECONDS", "60"))
FIRST = int(option("TIDEGATE_CHANGES_FIRST", "0"))
ROUNDS = int(option("TIDEGATE_CHANGES_ROUNDS", "12"))


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    folder = Path(mkdtemp(prefix="tidegate-forks-"))
    found = Forks(folder)
    yield found
    found.close()
    shutil.rmtree(folder)


def test_nothing_that_changes_ends_it_or_makes_a_total_wrong(forks: Forks) -> None:
    """As many worlds as there is time for, at least one."""
    if forks.clock is None:
        print("left out: the wall clock is not set, as libfaketime is not installed")
    deadline = time.monotonic() + SECONDS if SECONDS else float("inf")
    seed, rounds = FIRST, 0
    while seed == FIRST or (SECONDS and time.monotonic() < deadline):
        rounds += live(forks, seed, deadline)
        seed += 1
    print(f"{seed - FIRST} worlds, {rounds} rounds, seeds {FIRST} to {seed - 1}")


def live(forks: Forks, seed: int, deadline: float) -> int:
    """Live one world, from its seed, and return how many rounds it had; its folder stays if it fails."""
    folder = Path(mkdtemp(prefix=f"tidegate-changes-{seed}-"))
    if forks.clock is not None:
        forks.set_clock(0)
    world = World(folder, random.Random(f"changes {seed}"), forks)
    try:
        rounds = play(world, ROUNDS, deadline)
        world.close()
    except Exception as fault:
        again = f"TIDEGATE_CHANGES_FIRST={seed} TIDEGATE_CHANGES_SECONDS=0 TIDEGATE_CHANGES_ROUNDS={ROUNDS}"
        story = f"in {folder}: {world.settings}\n{', '.join(world.story)}"
        pytest.fail(f"{fault!r}\n\n{again} pytest tests/faults/test_changes.py\n{story}")
    finally:
        world.abandon()
    shutil.rmtree(folder)
    return rounds
