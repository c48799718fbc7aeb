"""What docs/simulator.md shows is what tests do."""

import re

from simulator.client import Simulator
from tests.support.places import ROOT


def test_the_example_for_tests_runs(platform: Simulator) -> None:
    """Names of the client changed once, and the page kept the old ones."""
    text = (ROOT / "docs" / "simulator.md").read_text()
    section = text.partition("## In tests")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n)+", section, re.MULTILINE)
    assert len(blocks) == 2
    exec(blocks[1].replace("\n    ", "\n").strip(), {"platform": platform})
    called = set(re.findall(r"`(\w+)\(", section)) - {"kill", "start", "in_process"}
    assert called and not [
        name for name in called if not hasattr(Simulator, name) and name != "PlatformProcess"
    ]
