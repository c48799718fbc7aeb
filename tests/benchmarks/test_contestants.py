"""Whatever is measured is exact, and a wrong total stops the benchmark."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.contestants import CONTESTANTS, Failed, Measured, Usage, measure
from benchmarks.generate import Dataset, Workload, generate
from benchmarks.oracle import Row


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return generate(Workload(events=3_000, keys=100), tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", CONTESTANTS)
def test_every_contestant_is_exact(name: str, dataset: Dataset, tmp_path: Path) -> None:
    measured = measure(name, dataset, tmp_path)
    assert measured.events == 3_000
    assert measured.rate() > 0 < measured.cpu_s
    assert measured.peak_bytes > 1 << 20


def test_a_wrong_total_stops_the_benchmark(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = CONTESTANTS["loop"]

    def less_one(directory: Path) -> Iterator[Row]:
        rows = loop.rows(directory)
        next(rows)
        return rows

    monkeypatch.setitem(CONTESTANTS, "loop", replace(loop, rows=less_one))
    with pytest.raises(Failed, match="1 totals are wrong"):
        measure("loop", dataset, tmp_path)


def test_a_process_that_fails_stops_the_benchmark_and_says_why(dataset: Dataset, tmp_path: Path) -> None:
    broken = replace(dataset, whole=tmp_path / "nowhere.ndjson")
    with pytest.raises(Failed, match="nowhere"):
        CONTESTANTS["loop"].run(broken, tmp_path)


def test_rates_of_independent_processes_are_added() -> None:
    usages = (Usage(wall_s=3, cpu_s=1, peak_bytes=5), Usage(wall_s=5, cpu_s=2, peak_bytes=7))
    apart = Measured(events=1000, usages=usages, shares=(600, 400))
    together = Measured(events=1000, usages=usages, shares=(0, 0))
    assert apart.rate(start_up_s=1) == 600 / 2 + 400 / 4
    assert together.rate(start_up_s=1) == 1000 / 4
    assert (together.cpu_s, together.peak_bytes) == (3, 12)
