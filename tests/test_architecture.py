"""Imports point one way through the house, the engine is behind flows/ and connectors, and rooms stay small."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.places import ROOT

MAY_IMPORT: Final = {
    "operators": {"operators"},
    "settings": {"settings", "operators"},
    "connectors": {"connectors", "settings", "operators"},
    "flows": {"flows", "connectors", "settings", "operators"},
    "serving": {"serving", "connectors", "settings", "operators"},
    "simulator": set[str](),
}
ROOM_MAX: Final = 16
"""Modules in a folder that a newcomer can still list from its name."""
PURE: Final = {
    "os",
    "socket",
    "sqlite3",
    "subprocess",
    "httpx",
    "redis",
    "confluent_kafka",
    "bytewax",
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative imports hide where a name comes from"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(folder)
        for name in imported(path)
        if name.split(".")[0] == "tidegate"
        and (len(name.split(".")) < 2 or name.split(".")[1] not in MAY_IMPORT[folder])
    ]
    assert not wrong


@pytest.mark.parametrize("folder", [*MAY_IMPORT, "tests", "examples", "benchmarks"])
def test_everything_is_imported_by_the_one_name(folder: str) -> None:
    """A module that is imported by two names is there twice, with two of each class."""
    folders = MAY_IMPORT.keys() - {"simulator"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(folder)
        for name in imported(path)
        if name.split(".")[0] in folders
    ]
    assert not wrong


def test_the_domain_is_pure() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("operators")
        for name in imported(path)
        if name.split(".")[0] in PURE
    ]
    assert not wrong


def test_nothing_of_the_product_needs_the_simulator_or_the_demo() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in MAY_IMPORT.keys() - {"simulator"}
        for path in modules(folder)
        for name in imported(path)
        if name.split(".")[0] in ("simulator", "examples", "benchmarks", "tests")
    ]
    assert not wrong


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {
        ".".join(("tidegate", *path.relative_to(ROOT).with_suffix("").parts)): {
            name for name in imported(path) if name.startswith("tidegate.")
        }
        for folder in MAY_IMPORT.keys() - {"simulator"}
        for path in modules(folder)
        if path.name != "__init__.py"
    }
    # Whoever imports nothing that is left is no part of a circle.
    while done := {module for module, names in graph.items() if not names & graph.keys()}:
        graph = {module: names for module, names in graph.items() if module not in done}
    assert not graph


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_rooms_can_be_looked_over(folder: str) -> None:
    sizes = Counter(path.parent for path in modules(folder) if path.name != "__init__.py")
    assert not {str(room.relative_to(ROOT)): size for room, size in sizes.items() if size > ROOM_MAX}
