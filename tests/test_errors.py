"""Every exception of the product is a TidegateError, or has a line here that says why it is none."""

from collections.abc import Iterator
from importlib import import_module
from typing import Final

import pytest

from tests.support.places import ROOT
from tidegate.operators.model.errors import TidegateError

OTHERS: Final = {
    "connectors.dodo.client._Endless": "breaks off reading an answer, and becomes an `Answer`",
    "connectors.dodo.sender.Stopped": "ends a turn out of a wait, where the flow ends in order",
    "connectors.reconciliation.repairer._Refused": "carries the result of an act to where it is written down",
    "operators.events.validate._Unfit": "carries the reason of a reject, which is a value, to where that is made",
    "serving.client.middleware.Denied": "is the gate's answer: who catches failures must not catch it",
    "serving.http.connection.protocol._Refusal": "is an HTTP answer to what cannot be parsed",
    "serving.http.problems.Problem": "is an HTTP answer",
    "serving.http.requests.Disconnected": "ends a request that nobody waits for",
    "settings.catalog.yaml_nodes._Stop": "breaks off reading a file, and becomes one of its faults",
}


def ours(base: type[BaseException] = BaseException) -> Iterator[type[BaseException]]:
    """The exceptions that the product defines and that derive from `base`, once all of its modules are imported."""
    for found in base.__subclasses__():
        if found.__module__.startswith("tidegate."):
            yield found
        yield from ours(found)


def named(error: type[BaseException]) -> str:
    return f"{error.__module__}.{error.__qualname__}".removeprefix("tidegate.")


@pytest.fixture(scope="module")
def exceptions() -> set[type[BaseException]]:
    for folder in ("operators", "connectors", "settings", "flows", "serving"):
        for path in (ROOT / folder).rglob("*.py"):
            import_module(".".join(("tidegate", *path.relative_to(ROOT).with_suffix("").parts)))
    return set(ours())


def test_every_exception_is_a_tidegate_error_or_says_why_not(exceptions: set[type[BaseException]]) -> None:
    assert {named(one) for one in exceptions if not issubclass(one, TidegateError)} == set(OTHERS)


def test_every_error_says_what_it_means(exceptions: set[type[BaseException]]) -> None:
    assert [named(one) for one in exceptions if named(one) not in OTHERS and not one.__doc__] == []
