import sys
from typing import Any

COUNTED = (
    ("tests.faults.test_crash_matrix", "hits", "killed at"),
    ("tests.faults.test_billing_campaign", "killed", "billing killed at"),
    ("tests.faults.test_billing_campaign", "lost_answers", "answers lost after commit, by seed"),
)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says what runs were killed at and what went wrong in them, as a crash test shows only what it hit."""
    for module, name, title in COUNTED:
        counted = getattr(sys.modules.get(module), name, None)
        if counted:
            terminalreporter.section(title)
            for what, count in sorted(counted.items()):
                terminalreporter.write_line(f"{count:5} {what}")
