"""The loop that the flow is compared with does the work it is given credit for."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.generate import Workload, generate
from benchmarks.loop import Outcome, meter
from benchmarks.oracle import Row, compare, expected


def completion(id: str = "1", at: str = "2026-11-01T10:00:00Z", **changes: Any) -> dict[str, Any]:
    event = {
        "specversion": "1.0",
        "id": id,
        "source": "s",
        "type": "llm.completion",
        "subject": "a",
        "time": at,
        "data": {"input_tokens": 10, "output_tokens": 1, "cached": False},
    }
    return {**event, **changes}


def metered(tmp_path: Path, *events: object) -> Outcome:
    path = tmp_path / "events.ndjson"
    path.write_text(
        "".join(f"{event if isinstance(event, str) else json.dumps(event)}\n" for event in events)
    )
    return meter([path])


def test_it_is_exact(tmp_path: Path) -> None:
    dataset = generate(Workload(events=20_000, keys=500, offsets=0.05), tmp_path)
    outcome = meter([dataset.whole])
    assert compare(outcome.rows(), expected([dataset.whole])).is_exact
    assert outcome.duplicates == 200
    assert outcome.late_open > 0 < outcome.late_closed
    assert meter(list(dataset.parts)).accepted == outcome.accepted == 19_800


def test_decimals_add_up_exactly(tmp_path: Path) -> None:
    """0.1 ten times is 1, and an integer among them changes nothing."""
    jobs = [completion(str(n), type="gpu.job", data={"seconds": 0.1}) for n in range(9)]
    outcome = metered(tmp_path, *jobs, completion("x", type="gpu.job", data={"seconds": 2}))
    assert Row("a", "gpu_seconds", "period", 1_793_491_200_000_000, "2.9", 10) in list(outcome.rows())


def test_a_repeat_with_another_payload_is_a_conflict(tmp_path: Path) -> None:
    changed = completion(data={"input_tokens": 11, "output_tokens": 1, "cached": False})
    later = completion(at="2026-11-01T10:00:01Z")
    renamed = completion(type="gpu.job")
    outcome = metered(tmp_path, completion(), completion(), changed, later, renamed)
    assert (outcome.duplicates, outcome.conflicts, outcome.accepted) == (1, 3, 1)


def test_another_customer_or_source_may_use_the_same_id(tmp_path: Path) -> None:
    assert metered(tmp_path, completion(), completion(subject="b"), completion(source="t")).accepted == 3


@pytest.mark.parametrize(
    "event",
    [
        "{",
        "[]",
        {"id": "1"},
        completion(specversion="0.3"),
        completion(id=""),
        completion(subject=""),
        completion(subject="x" * 257),
        completion(source=7),
        completion(at="2026-11-01 10:00"),
        completion(at="2026-11-01T10:00:00"),
        completion(at="2026-02-30T10:00:00Z"),
        completion(at="1999-12-31T23:59:59Z"),
        completion(at="2100-01-01T00:00:00Z"),
        completion(data="text"),
        completion(data={"output_tokens": -1}),
        completion(data={"output_tokens": 10**15 + 1}),
        completion(type="gpu.job", data={"seconds": -0.5}),
    ],
    ids=str,
)
def test_an_unusable_event_is_a_reject_and_its_neighbours_are_not(tmp_path: Path, event: object) -> None:
    outcome = metered(tmp_path, completion("before"), event, completion("after"))
    assert (outcome.events, outcome.rejects, outcome.accepted) == (3, 1, 2)


def test_what_is_no_number_is_no_reading(tmp_path: Path) -> None:
    outcome = metered(
        tmp_path, completion(data={"input_tokens": "7", "output_tokens": True, "cached": False})
    )
    assert {(row.meter, row.total) for row in outcome.rows()} == {("requests", "1")}


def test_time_classes_go_by_the_customers_own_latest_event(tmp_path: Path) -> None:
    outcome = metered(
        tmp_path,
        completion("1", "2026-11-02T10:00:00Z"),
        completion("2", "2026-11-02T09:59:00Z"),
        completion("3", "2026-11-01T09:59:59Z"),
        completion("4", "2026-11-01T00:00:30Z", subject="b"),
        completion("5", "2026-10-31T23:59:59Z", subject="b"),
    )
    assert (outcome.late_open, outcome.too_late, outcome.late_closed, outcome.accepted) == (1, 1, 1, 4)


def test_each_level_is_raised_once(tmp_path: Path) -> None:
    """`requests` tells at 300, 480, 540 and 600 of 600, and the cap at 600."""
    events = [completion(str(n), data={"cached": True}) for n in range(700)]
    outcome = metered(tmp_path, *events)
    assert [(meter, label, total) for _, meter, _, label, total in outcome.alerts] == [
        ("requests", "50%", "300"),
        ("requests", "80%", "480"),
        ("requests", "90%", "540"),
        ("requests", "100%", "600"),
        ("requests", "cap", "600"),
    ]


def test_overage_starts_past_the_included_quantity(tmp_path: Path) -> None:
    """100,000 of 100,000 is not over yet."""
    events = [completion(str(n), data={"output_tokens": size}) for n, size in enumerate((100_000, 1, 1))]
    labels = [(label, total) for _, meter, _, label, total in metered(tmp_path, *events).alerts]
    assert labels == [("80%", "100000"), ("100%", "100000"), ("overage", "100001")]
