"""What ends a flow is said, also in a cluster, where Bytewax keeps it to itself. For stores, the drills see to it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.flows.conftest import Place
from tidegate.flows.meter.dataflow import _encode_lines, _select_alerts
from tidegate.flows.meter.decode_step import DecodeStep
from tidegate.flows.meter.shard_step import ShardLogic
from tidegate.flows.meter.store_step import StoreStep, _Stored
from tidegate.operators.model.ports import Resend

NOTHING: Any = None
TWO = {"RECOVERY_PARTS": "2"}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"SOURCE": "file:none.ndjson"}, "file 'none.ndjson': not found"),
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


@pytest.mark.parametrize(
    "call",
    [
        lambda: DecodeStep.chunks(NOTHING, []),
        lambda: DecodeStep.direct(NOTHING, Resend(id="r")),
        lambda: ShardLogic.on_batch(NOTHING, []),
        lambda: ShardLogic.on_notify(NOTHING),
        lambda: ShardLogic.on_eof(NOTHING),
        lambda: ShardLogic.snapshot(NOTHING),
        lambda: StoreStep._write(NOTHING, []),
        lambda: _Stored.on_eof(NOTHING),
        lambda: _Stored.snapshot(NOTHING),
        lambda: _select_alerts(NOTHING, ("0.1", NOTHING)),
        lambda: _encode_lines(NOTHING, [], NOTHING),
    ],
)
def test_our_own_bugs_are_told_with_their_place(
    caplog: pytest.LogCaptureFixture, call: Callable[[], object]
) -> None:
    with pytest.raises(AttributeError):
        call()
    [record] = caplog.records
    assert record.getMessage().startswith("the flow ends: AttributeError(")
    assert record.exc_info


@pytest.mark.parametrize("setting", ["SOURCE", "ALERTS", "DEAD_LETTERS"])
def test_a_topic_that_is_missing_is_one_line(place: Place, kafka: Any, setting: str) -> None:
    """Flows never create topics; a command does."""
    place.append("first.jsonl")
    topic = kafka.unused()
    said = place.refused(**{setting: f"kafka://{kafka.bootstrap}/{topic}"})
    assert f"topic '{topic}': UNKNOWN_TOPIC_OR_PART" in said and "create it" in said
    assert len(said.strip().splitlines()) == 1, said
