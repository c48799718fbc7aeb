"""A wall clock that is set back ends the flow with a line, as Bytewax would wait for the old time."""

import pytest

from tidegate.flows.runtime.clock_guard import BACK_MAX_S, ClockGuard


class Clocks:
    """A guard on two clocks of which one is set."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1_000_000.0, 5.0
        self.lines: list[str] = []
        self.guard = ClockGuard(self.lines.append, lambda: self.wall, lambda: self.monotonic)

    def go_on(self, seconds: float, set_by: float = 0) -> list[str]:
        self.monotonic += seconds
        self.wall += seconds + set_by
        self.guard.look()
        return self.lines


def test_a_clock_that_is_set_back_ends_the_flow() -> None:
    (line,) = Clocks().go_on(1, set_by=-3600)
    assert line == "the wall clock was set back by 3600 s; start the flow again, which goes on where it was"


@pytest.mark.parametrize("set_by", [0, 3600, -BACK_MAX_S])
def test_other_clocks_do_not(set_by: float) -> None:
    """Those that are set ahead, or that are apart after a process was stopped for a while."""
    clocks = Clocks()
    assert clocks.go_on(1, set_by) == clocks.go_on(600) == clocks.go_on(1, set_by) == []
