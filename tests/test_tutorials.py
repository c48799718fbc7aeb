"""README's minute and the tutorials that need no broker are followed to the letter; only ports are others."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.places import ROOT
from tests.support.ports import free_ports
from tests.support.walkthrough import Shell, follow, open_shell

TUTORIALS = ROOT / "docs" / "tutorials"
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    found = open_shell(tmp_path)
    yield found
    found.close()


def test_the_minute_of_the_readme_ends_at_a_closed_cap(shell: Shell, tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text()
    section = page.partition("\n## A minute to a closing cap\n")[2].partition("\n## ")[0]
    assert follow(section, shell, tmp_path) == 4


def test_the_first_meter(shell: Shell, tmp_path: Path) -> None:
    assert follow((TUTORIALS / "first-meter.md").read_text(), shell, tmp_path) > 15


def on_ports(*shown: int) -> Callable[[str], str]:
    """Return what puts free ports in the place of those that a page shows."""
    ports = dict(zip(map(str, shown), map(str, free_ports(len(shown))), strict=True))

    def adapt(text: str) -> str:
        text = re.sub(r"\b(" + "|".join(ports) + r")\b", lambda found: ports[found[1]], text)
        return text.replace("tidegate serve", f"tidegate serve --listen localhost:{ports.get('8080')}")

    return adapt


@needs_curl
def test_a_cap_in_fastapi(shell: Shell, tmp_path: Path) -> None:
    page = (TUTORIALS / "fastapi.md").read_text()
    assert follow(page, shell, tmp_path, on_ports(8080, 8000)) > 10


@needs_curl
def test_billing(shell: Shell, tmp_path: Path) -> None:
    assert follow((TUTORIALS / "billing.md").read_text(), shell, tmp_path, on_ports(8099)) > 15


def replace_last_line(path: Path, text: str) -> None:
    """Write `text` into a file; into one that is there, in the place of its last line."""
    kept = path.read_text().splitlines(keepends=True)[:-1] if path.exists() else []
    path.write_text("".join(kept) + ("\n\n" if kept else "") + text)


def test_a_connector_passes_the_contract_and_feeds_the_flow(tmp_path: Path) -> None:
    """In a copy of the repository."""
    for name in ("connectors", "flows", "operators", "serving", "settings", "tests", "tidegate"):
        shutil.copytree(
            ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shell = open_shell(tmp_path, root=tmp_path)
    try:
        page = (TUTORIALS / "connector.md").read_text()
        assert follow(page, shell, tmp_path, write=replace_last_line) == 10
    finally:
        shell.close()
