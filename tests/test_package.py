"""The package as it is installed: `tidegate` alone, in any folder, on the application side without the engine."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import tidegate
from tests.support.places import ROOT

SCENARIOS: Final = ROOT / "tests" / "flows" / "scenarios"
BUILD: Final = "import setuptools.build_meta as backend; print(backend.build_{kind}({to!r}))"
OWN: Final = 'raise RuntimeError("the application has a module of this name")\n'


class Installed(NamedTuple):
    """An environment with the wheel, and a folder whose modules have the names of ours."""

    wheel: Path
    python: Path
    folder: Path

    def run(self, *words: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("TIDEGATE_", "BYTEWAX_", "PYTHON"))}
        given = {f"TIDEGATE_{name}": value for name, value in settings.items()}
        return subprocess.run(
            [str(self.python), *words],
            cwd=self.folder,
            env=kept | given,
            capture_output=True,
            text=True,
            timeout=120,
        )


def built(kind: str, source: Path, to: Path) -> Path:
    """Build an sdist or a wheel of the tree at `source`, as pip does."""
    ended = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind, to=str(to))],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return to / ended.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, built from the sdist, which is built from what the repository has."""
    place = tmp_path_factory.mktemp("package")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "tidegate", "connectors"]
    listed += ["flows", "operators", "serving", "settings", "pyproject.toml", "README.md", "LICENSE"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            copy = place / "tree" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                copy.symlink_to(os.readlink(ROOT / name))
            else:
                copy.write_bytes((ROOT / name).read_bytes())
    with tarfile.open(built("sdist", place / "tree", place)) as archive:
        archive.extractall(place / "sdist", filter="data")
    [unpacked] = (place / "sdist").iterdir()
    wheel = built("wheel", unpacked, place)
    venv.create(place / "env", with_pip=False)
    [site] = (place / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # What the product needs, but nothing that an editable installation adds to the path.
    (site / "needed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    folder = place / "application"
    (folder / "flows").mkdir(parents=True)
    for name in ("settings.py", "operators.py", "connectors.py", "serving.py", "flows/__init__.py"):
        (folder / name).write_text(OWN)
    (folder / "catalog.yaml").write_bytes((SCENARIOS / "catalog.yaml").read_bytes())
    (folder / "in.ndjson").write_bytes((SCENARIOS / "first.jsonl").read_bytes())
    return Installed(wheel, place / "env" / "bin" / "python", folder)


def test_the_wheel_has_one_package_and_all_that_it_loads(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"tidegate"}
    assert "tidegate/py.typed" in names and "tidegate/connectors/alerts/templates/alerts.html.j2" in names
    assert "tidegate/serving/dashboard/static/index.html" in names
    assert not [name for name in names if "simulator" in name or "tests" in name or "demo/app" in name]


def test_flow_command_and_gate_run_among_modules_of_the_same_names(installed: Installed) -> None:
    settings = {"SOURCE": "file:in.ndjson", "CATALOG": "catalog.yaml", "STORE": "sqlite:store.db"}
    flow = installed.run("-m", "bytewax.run", "tidegate.flows.metering", **settings)
    assert flow.returncode == 0, flow.stderr
    totals = installed.run("-m", "tidegate", "totals", "--json", "--store", "sqlite:store.db")
    assert totals.returncode == 0 and '"customer":"acme"' in totals.stdout, totals.stderr
    code = "from tidegate import Gate; print(Gate.open().check('acme', 'calls', 0).used)"
    gate = installed.run("-c", code, **settings)
    assert gate.returncode == 0 and gate.stdout.strip() != "None", gate.stderr


WITHOUT: Final = "import sys; sys.modules['bytewax'] = None\n"


def test_an_application_needs_no_engine(installed: Installed) -> None:
    """Nor does whoever serves, or looks at what a flow elsewhere has written."""
    code = WITHOUT + "import tidegate\nfor name in tidegate.__all__: getattr(tidegate, name)\n"
    code += "import tidegate.serving.cli.main, tidegate.serving.http.server, tidegate.settings.settings"
    ended = installed.run("-c", code)
    assert ended.returncode == 0, ended.stderr


def test_a_command_that_needs_the_engine_says_how_to_install_it(installed: Installed) -> None:
    code = (
        WITHOUT + "sys.argv = ['tidegate', 'reconcile']\nfrom tidegate.serving.cli.main import main\nmain()"
    )
    ended = installed.run("-c", code)
    assert ended.returncode == 1 and "pip install 'tidegate[flow]'" in ended.stderr, ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_checkout_runs_the_flow_by_its_folder_s_name(tmp_path: Path) -> None:
    """`python -m bytewax.run flows.metering`, with nothing but the repository on the path."""
    names = {"SOURCE": f"file:{SCENARIOS / 'first.jsonl'}", "CATALOG": str(SCENARIOS / "catalog.yaml")}
    names |= {"STORE": f"sqlite:{tmp_path / 'store.db'}", "DATA_DIR": str(tmp_path / "data")}
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("TIDEGATE_", "BYTEWAX_"))}
    ended = subprocess.run(
        [sys.executable, "-m", "bytewax.run", "flows.metering"],
        cwd=ROOT,
        env=kept | {f"TIDEGATE_{name}": value for name, value in names.items()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0 and (tmp_path / "store.db").exists(), ended.stderr


def test_public_names_are_what_the_docs_list() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    section = text.partition("## From Python")[2].partition("\n## ")[0]
    assert {name for name in tidegate.__all__ if f"`{name}`" not in section} == set()
    assert set(tidegate.__all__) <= set(dir(tidegate))
    with pytest.raises(AttributeError, match="no attribute 'Gat'"):
        tidegate.Gat  # noqa: B018
