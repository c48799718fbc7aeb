"""A world's life: rounds of changes, events and runs."""

import time
from collections.abc import Callable

from tests.faults.changes.changes import (
    adjust,
    ask_for_totals,
    back_up,
    change_catalog,
    change_settings,
    follow,
    lose_store,
    refuse_settings,
    set_clock,
)
from tests.faults.changes.door import through_the_door
from tests.faults.changes.world import World

CHANGES: tuple[Callable[[World], None], ...] = (
    change_catalog, change_catalog, change_catalog, change_settings, change_settings, refuse_settings, set_clock,
    adjust, adjust, lose_store, ask_for_totals, back_up,
)  # fmt: skip


def play(world: World, rounds: int, deadline: float) -> int:
    """Play rounds of changes, events and runs until the deadline, and return how many; the story says what was done."""
    rng = world.rng
    world.send(20)
    world.run()
    for played in range(rounds):
        if time.monotonic() > deadline:
            return played
        for change in rng.sample(CHANGES, rng.randint(0, 2)):
            world.story.append(change.__name__)
            change(world)
        if rng.random() < 0.4:
            way = rng.choice((follow, through_the_door))
            world.story.append(way.__name__)
            way(world)
        else:
            world.send(rng.choice((0, 3, 40)))
            world.story.append("run")
            world.run()
    return rounds
