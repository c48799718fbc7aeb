"""The property about rotation fails readers that rotate as readers wrongly do: else it proves nothing."""

from typing import Any

import pytest

from tests.connectors.files.test_rotation import (
    test_every_line_comes_once_and_in_order_however_the_log_is_rotated as follow_every_rotation,
)
from tidegate.connectors.files import partition, rotation
from tidegate.connectors.files.partition import FilePartition

BROKEN = {
    "forgets the rest of the old file": (FilePartition, "_take_up_renamed", lambda self, resume: False),
    "reads no file in between": (rotation, "newer", lambda *_: ([], [])),
    "leaves a file before it was read to its end": (
        FilePartition,
        "_is_replaced",
        lambda self, fd: bool(self._go_on(0)),
    ),
    "goes on where the old file ended": (FilePartition, "_restart", lambda self: self._started(None)),
    "takes the last file for the next": (rotation, "_age", lambda each: -each.stat.st_mtime_ns),
}


SCENARIOS = [
    ["write", "wait", "down", "write", "rename", "write", "rename", "write", "rename", "write"],
    ["write", "wait", "write", "write", "write", "write", "write", "write", "rename", "write"],
    ["write", "wait", "down", "write", "copy", "write"],
    ["write", "wait", "rename", "wait", "write", "write"],
]
# The property itself, without the search for examples, which takes long where all of them fail.
follow = follow_every_rotation.hypothesis.inner_test  # type: ignore[attr-defined]


def test_the_scenarios_are_followed() -> None:
    for acts in SCENARIOS:
        follow(acts, "in.log")


@pytest.mark.parametrize("broken", BROKEN)
def test_the_property_fails_a_broken_reader(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, wrong = BROKEN[broken]
    place: Any = where
    monkeypatch.setattr(place, name, wrong)
    with pytest.raises((AssertionError, partition.FileError)):
        for acts in SCENARIOS:
            follow(acts, "in.log")
