"""The benchmark's input is what it says it is, or its numbers mean nothing."""

import json
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.generate import METERS, OLDEST, Dataset, Workload, catalog, generate
from tidegate.settings.catalog.file import load_catalog

WORKLOAD = Workload(events=20_000, keys=500, offsets=0.05)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return generate(WORKLOAD, tmp_path_factory.mktemp("data"))


def events_of(dataset: Dataset) -> list[dict[str, Any]]:
    return [json.loads(line) for line in dataset.whole.read_text().splitlines()]


def test_equal_parameters_give_equal_bytes(dataset: Dataset, tmp_path: Path) -> None:
    again, other = generate(WORKLOAD, tmp_path), generate(Workload(events=20_000, keys=500, seed=2), tmp_path)
    assert again.whole.read_bytes() == dataset.whole.read_bytes()
    assert other.whole.read_bytes() != dataset.whole.read_bytes()


def test_what_is_there_is_not_written_again(dataset: Dataset) -> None:
    before = dataset.whole.stat().st_mtime_ns
    assert generate(WORKLOAD, dataset.directory.parent) == dataset
    assert dataset.whole.stat().st_mtime_ns == before


def test_a_file_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    first = generate(WORKLOAD, tmp_path)
    right = first.whole.read_bytes()
    first.whole.write_bytes(right[:1000])
    assert generate(WORKLOAD, tmp_path).whole.read_bytes() == right


def test_the_parts_are_the_whole_and_no_customer_is_in_two(dataset: Dataset) -> None:
    """Each part keeps the whole's order; else a customer's latest event would differ between them."""
    whole = dataset.whole.read_text().splitlines()
    parts = [part.read_text().splitlines() for part in dataset.parts]
    assert Counter(whole) == Counter(line for part in parts for line in part)
    assert [len(part) for part in parts] == list(dataset.part_events)
    customers = [{json.loads(line)["subject"] for line in part} for part in parts]
    assert not customers[0] & customers[1]
    for part, own in zip(parts, customers, strict=True):
        assert part == [line for line in whole if json.loads(line)["subject"] in own]


def test_every_key_is_active(dataset: Dataset) -> None:
    fed = defaultdict(set)
    for event in events_of(dataset):
        fed[event["subject"]].add((event["type"], event["data"].get("cached")))
    wanted = {("llm.completion", False), ("gpu.job", None), ("llm.session", None)}
    assert len(fed) == WORKLOAD.keys // len(METERS)
    assert all(wanted <= found for found in fed.values())


def test_the_least_number_of_events_makes_every_key_active(tmp_path: Path) -> None:
    workload = Workload(events=1, keys=500)
    least = generate(Workload(events=workload.events_min, keys=500), tmp_path)
    assert len({(event["subject"], event["type"]) for event in events_of(least)}) == 300


def test_shares_are_as_told(dataset: Dataset) -> None:
    lines = dataset.whole.read_text().splitlines()
    assert len(lines) - len(set(lines)) == len(lines) * WORKLOAD.duplicates
    latest: dict[str, datetime] = {}
    behind = []
    for event in events_of(dataset):
        at = datetime.fromisoformat(event["time"])
        latest[event["subject"]] = max(latest.get(event["subject"], at), at)
        behind.append(latest[event["subject"]] - at)
    assert max(behind) < OLDEST
    assert 0 < sum(by > timedelta(minutes=61) for by in behind) < len(lines) * 0.002
    assert sum(by > timedelta(0) for by in behind) > len(lines) * 0.02


def test_events_are_of_the_size_that_is_measured(dataset: Dataset) -> None:
    assert 220 <= dataset.bytes / dataset.events <= 240


def test_the_catalog_is_the_same_in_both_forms(dataset: Dataset) -> None:
    assert load_catalog(dataset.catalog) == catalog()
