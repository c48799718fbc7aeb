"""Dependencies are what the policy says, and the policy would notice."""

import datetime
import importlib.util
from importlib.metadata import Distribution, distributions
from typing import Any

import pytest

from tests.support.places import ROOT


def load() -> Any:
    spec = importlib.util.spec_from_file_location("dependencies", ROOT / ".ci" / "dependencies.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


policy = load()


class Package(Distribution):
    """An installed package that is made up."""

    def __init__(self, *lines: str) -> None:
        self._text = "\n".join(("Metadata-Version: 2.4", "Name: made-up", "Version: 1", *lines))

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


def test_what_is_pinned_and_installed_is_within_the_policy() -> None:
    assert policy.main("locked") == []
    assert policy.main("licenses") == []


@pytest.mark.parametrize(
    "lines",
    [
        ("License-Expression: AGPL-3.0-only",),
        ("License-Expression: MIT AND GPL-2.0-only",),
        ("License-Expression: (MIT OR Apache-2.0) AND SSPL-1.0",),
        ("Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)",),
        ("License: Proprietary",),
        (),
    ],
)
def test_another_licence_or_none_is_refused(lines: tuple[str, ...]) -> None:
    (wrong,) = policy.unlicensed([Package(*lines)], policy.policy())
    assert wrong.startswith("made-up: needs one of")


@pytest.mark.parametrize(
    "lines",
    [
        ("License-Expression: MIT OR GPL-2.0-only",),
        ("License-Expression: (GPL-2.0-only OR MIT) AND BSD-3-Clause",),
        ("Classifier: License :: OSI Approved :: MIT License",),
        ("License: Apache 2.0",),
    ],
)
def test_a_licence_that_can_be_chosen_is_enough(lines: tuple[str, ...]) -> None:
    assert policy.unlicensed([Package(*lines)], policy.policy()) == []


def test_what_is_not_pinned_or_otherwise_is_refused() -> None:
    version = next(pin.version for pin in policy.pins(policy.ALL) if pin.name == "httpx")
    assert policy.unlocked({"httpx": version}) == []
    assert [one.partition(":")[0] for one in policy.unlocked({"httpx": "0", "made-up": "1"})] == [
        "httpx",
        "made-up",
    ]


def test_an_accepted_vulnerability_ends() -> None:
    rules = {"vulnerabilities": {"A": "until 2026-12-01: why", "B": "until 2026-10-01: why", "C": "later"}}
    ids, wrong = policy.accepted(rules, datetime.date(2026, 11, 1))
    assert ids == ["A"] and [one[0] for one in wrong] == ["B", "C"]


def test_the_bill_of_materials_has_all_that_the_image_has_and_repeats() -> None:
    bill = policy.bill()
    assert bill == policy.bill() and (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    refs = [one["bom-ref"] for one in bill["components"]]
    assert len(set(refs)) == len(refs) and set(bill["dependencies"][0]["dependsOn"]) == set(refs)
    named = {one["name"] for one in bill["components"]}
    assert {pin.name for pin in policy.pins(policy.RUN)} | {"python"} == named
    installed = {policy.normal(one.metadata["Name"]) for one in distributions()}
    assert all("licenses" in one for one in bill["components"] if one["name"] in installed)
