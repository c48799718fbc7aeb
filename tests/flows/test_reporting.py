"""What ends a flow is said, also in a cluster, where Bytewax keeps it to itself. For stores, the drills see to it."""

import pytest

from tests.flows.conftest import Place

TWO = {"RECOVERY_PARTS": "2"}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"SOURCE": "file:none.ndjson"}, "the flow ends: file 'none.ndjson': not found"),
        ({"DEAD_LETTERS": "file:/dev/null"}, "the flow ends: file '/dev/null': not a regular file"),
    ],
    ids=["source", "sink"],
)
def test_a_cluster_says_what_is_wrong_outside(place: Place, settings: dict[str, str], why: str) -> None:
    place.append("first.jsonl")
    assert why in place.refused_processes(2, **TWO, **settings)


def test_a_cluster_says_what_is_wrong_with_its_state(place: Place) -> None:
    place.append("first.jsonl")
    place.run_processes(2, **TWO)
    for path in (place.folder / "state" / "journal").glob("*/state-*.log"):
        path.write_bytes(b"")
    assert "the flow ends: journal" in place.refused_processes(2, **TWO)
