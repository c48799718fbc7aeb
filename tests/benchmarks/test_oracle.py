"""The oracle is right by a third count, and its comparison lets nothing through."""

import json
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from benchmarks.generate import Dataset, Workload, generate
from benchmarks.oracle import Row, compare, expected, rows

KEYS = {
    "tokens_in": ("llm.completion", "input_tokens"),
    "tokens_out": ("llm.completion", "output_tokens"),
    "requests": ("llm.completion", None),
    "gpu_seconds": ("gpu.job", "seconds"),
    "context": ("llm.session", "context"),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return generate(Workload(events=5_000, keys=100, offsets=0.1), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def right(dataset: Dataset) -> Path:
    return expected([dataset.whole], cache=dataset.directory / "expected.parquet")


def counted_slowly(path: Path) -> list[Row]:
    """The totals, as one would count them by hand."""
    readings: dict[tuple[str, str, str, datetime], list[Decimal]] = defaultdict(list)
    seen = set()
    for line in path.read_text().splitlines():
        event = json.loads(line, parse_float=Decimal, parse_int=Decimal)
        identity = event["subject"], event["source"], event["id"]
        if identity in seen:
            continue
        seen.add(identity)
        at = datetime.fromisoformat(event["time"]).astimezone(UTC)
        for meter, (name, key) in KEYS.items():
            if event["type"] != name or (meter == "tokens_in" and event["data"]["cached"]):
                continue
            quantity = event["data"][key] if key else Decimal(1)
            hour = at.replace(minute=0, second=0, microsecond=0)
            day = hour.replace(hour=0)
            for window, start in (("hour", hour), ("day", day), ("period", day.replace(day=1))):
                readings[event["subject"], meter, window, start].append(quantity)
    return [
        Row(
            customer,
            meter,
            window,
            int(start.timestamp()) * 1_000_000,
            f"{(max(found) if meter == 'context' else sum(found, Decimal(0))).normalize():f}",
            len(found),
        )
        for (customer, meter, window, start), found in readings.items()
    ]


def test_it_counts_as_one_would_by_hand(dataset: Dataset, right: Path) -> None:
    assert sorted(counted_slowly(dataset.whole)) == list(rows(right))


def test_the_parts_add_up_to_the_whole(dataset: Dataset, right: Path) -> None:
    assert list(rows(expected(dataset.parts))) == list(rows(right))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: [found[0]._replace(total="0.001"), *found[1:]],
        lambda found: [found[0]._replace(total=found[0].total + ".0"), *found[1:]],
        lambda found: [found[0]._replace(events=found[0].events + 1), *found[1:]],
        lambda found: [found[0]._replace(start=found[0].start + 1), *found[1:]],
        lambda found: found[1:],
        lambda found: [*found, found[0]],
        lambda found: [*found, found[0]._replace(customer="nobody")],
        lambda found: [],
    ],
    ids=["total", "text", "events", "start", "missing", "twice", "extra", "nothing"],
)
def test_a_single_wrong_total_is_found(right: Path, spoil: Callable[[list[Row]], list[Row]]) -> None:
    found = list(rows(right))
    assert compare(found, right).is_exact
    verdict = compare(spoil(found), right)
    assert not verdict.is_exact


def test_differences_are_told(right: Path) -> None:
    first, *others = rows(right)
    (told,) = compare([first._replace(total="7"), *others], right).differences
    assert told.startswith(
        f"{first.customer} {first.meter} {first.window} {first.start}: expected {first.total}"
    )
    assert told.endswith(f"got 7 of {first.events} events")


def test_an_input_with_conflicts_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    line = dataset.whole.read_text().splitlines()[0]
    path = tmp_path / "conflict.ndjson"
    path.write_text(f"{line}\n{line.replace('m-', 'n-')}\n")
    with pytest.raises(duckdb.Error, match="two payloads under one identity"):
        expected([path])
