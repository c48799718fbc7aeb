"""What README and docs say is there is there, and what is there they say."""

import os
import re
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, get_args

import pytest
from pydantic import ByteSize

from tests.support.places import ROOT
from tidegate.serving.cli.main import app
from tidegate.settings.addresses.address import PARTS, Address
from tidegate.settings.addresses.alerts import Alert
from tidegate.settings.durations import format_duration
from tidegate.settings.reconciliation import ReconciliationSettings, WebhookSettings
from tidegate.settings.serving import ServingSettings
from tidegate.settings.settings import Settings

README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
CONNECTORS = (ROOT / "docs" / "connectors.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# The flow's own stand before those that a service has beside them.
FIELDS = WebhookSettings.model_fields | ReconciliationSettings.model_fields | Settings.model_fields
ROLES = ("source", "ingest", "store", "alerts", "dead_letters", "billing")


def written(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case timedelta():
            return f"`{format_duration(value)}`"
        case ByteSize():
            return f"`{value >> 20}MiB`"
        case ():
            return "all"
        case (Address(), *_):
            return f"`{' '.join(map(str, value))}`"
        case tuple():
            return f"`{','.join(value)}`"
        case float():
            return f"`{value:g}`"
        case _:
            return f"`{value}`"


def schemes(role: str) -> Iterator[type[Address]]:
    # There may be several places for alerts.
    annotation = Alert if role == "alerts" else ServingSettings.model_fields[role].annotation
    annotation = get_args(annotation)[0] if role == "alerts" else annotation
    yield from (get_args(annotation) or (annotation,))


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_on_its_page_with_default_and_meaning(name: str) -> None:
    field = FIELDS[name]
    default = "required" if field.is_required() else written(field.default)
    assert f"| `TIDEGATE_{name.upper()}` | {default} | {field.description} |\n" in SETTINGS


def test_no_page_names_a_setting_that_is_gone() -> None:
    # The changelog speaks of earlier names, CONTRIBUTING of the tests' own variables.
    pages = [page for page in PAGES if page.name not in ("CHANGELOG.md", "CONTRIBUTING.md")]
    named = {name.lower() for page in pages for name in re.findall(r"\bTIDEGATE_([A-Z_]+)", page.read_text())}
    assert named - set(FIELDS) - set(ServingSettings.model_fields) == set()


def test_contributing_has_the_variables_of_the_tests_with_their_defaults() -> None:
    """Those that make campaigns longer, and those that choose what they run against."""
    read = re.compile(r"\boption\(\s*\"TIDEGATE_(\w+)\"(?:, \"([\d.]+)\")?")
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    found = [name_and_default for text in texts for name_and_default in read.findall(text)]
    page = (ROOT / "CONTRIBUTING.md").read_text()
    documented = dict[str, str]()
    for names, cell in re.findall(r"^\| (`TIDEGATE_[^|]+) \| ([^|]+) \|", page, re.MULTILINE):
        documented |= zip(re.findall(r"TIDEGATE_(\w+)", names), cell.split(", "), strict=True)
    assert set(re.findall(r"TIDEGATE_(\w+)", page)) == {name for name, _ in found}
    for name, default in documented.items():
        assert (name, default if default != "unset" else "") in found, name
    # The product would take them for settings that it does not know.
    assert not [name for name in os.environ if name.startswith("TIDEGATE_")]


@pytest.mark.parametrize("role", ROLES)
def test_every_scheme_of_a_role_has_its_row_and_no_other(role: str) -> None:
    section = CONNECTORS.partition(f"`TIDEGATE_{role.upper()}`\n")[2].partition("\n## ")[0]
    rows = {
        match[1] for match in re.finditer(r"^\| `([a-z+]+):[^`]*`(?:, `[^`]*`)* \|", section, re.MULTILINE)
    }
    cells = re.findall(r"^\| ((?:`[a-z+]+:`(?:, )?)+) \| `", section, re.MULTILINE)
    options = {scheme for cell in cells for scheme in re.findall(r"`([a-z+]+):`", cell)}
    known = {address.model_fields["scheme"].default for address in schemes(role)}
    assert rows == known
    assert options <= known


@pytest.mark.parametrize("role", ROLES)
def test_every_option_of_a_scheme_has_its_row(role: str) -> None:
    for address in schemes(role):
        for name in address.choices():
            assert name not in PARTS
            field = address.model_fields[name]
            default = "required" if field.is_required() else written(field.default)
            cell = rf"^\| (?:`[a-z+]+:`, )*`{re.escape(address.model_fields['scheme'].default)}:`(?:, `[a-z+]+:`)*"
            assert re.search(rf"{cell} \| `{name}` \| {re.escape(default)} \| ", CONNECTORS, re.MULTILINE), (
                name
            )


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_change_of_the_table_names_a_test_that_is_there() -> None:
    rows = [
        line for line in (ROOT / "docs" / "changes.md").read_text().splitlines() if line.startswith("| ")
    ][2:]
    assert len(rows) > 30
    for row in rows:
        found = re.search(r"\| `(\S+\.py)::(\w+)` \|$", row)
        assert found, row
        assert f"def {found[2]}(" in (ROOT / "tests" / found[1]).read_text(), row


def test_the_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in (README, OPERATIONS):
        for target in re.findall(r"^ +(?:\$ )?make ([a-z]+)", page, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    commands = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    groups = {group.name for group in app.registered_groups}
    # In code only; the same word begins sentences.
    for used in re.findall(r"(?:^ +(?:\$ )?|`|bin/)tidegate ([a-z-]+)", README + OPERATIONS, re.MULTILINE):
        assert used in commands | groups, used


def test_constraints_pin_what_the_project_needs_with_hashes_and_no_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints = (ROOT / "constraints.txt").read_text()
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in needed:
        name = re.split(r"[<>=\[]", requirement)[0].lower()
        assert re.search(
            rf"^{name}==\S+(?: ; .+)? \\\n    --hash=sha256:[0-9a-f]{{64}}", constraints, re.MULTILINE
        ), name
    for line in constraints.splitlines():
        assert re.fullmatch(
            r"#.*|[a-z0-9.-]+==\S+(?: ; [^\\]+)? \\|    --hash=sha256:[0-9a-f]{64}(?: \\)?", line
        ), line
    assert "://" not in constraints
