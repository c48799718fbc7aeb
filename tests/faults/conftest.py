import sys
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says which operations runs were killed at, as a crash test shows only what it hit."""
    module = sys.modules.get("tests.faults.test_crash_matrix")
    hits = getattr(module, "hits", None)
    if hits:
        terminalreporter.section("killed at")
        for name, count in sorted(hits.items()):
            terminalreporter.write_line(f"{count:5} {name}")
