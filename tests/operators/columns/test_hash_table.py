"""The flat table is a dict that takes whole batches."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.operators.columns.hash_table import Table

BATCHES = st.lists(st.lists(st.integers(0, 60) | st.integers(0, 2**64 - 1), max_size=80), max_size=12)


def words(keys: list[int]) -> Any:
    return np.array(keys, np.uint64)


@given(BATCHES)
@settings(deadline=None)
def test_rows_are_numbered_as_a_dict_would_number_them(batches: list[list[int]]) -> None:
    """Also for a key that comes twice in a batch: the first brings it in, so the first event counts."""
    table, expected = Table(1, {"seen": np.int64}), dict[int, int]()
    for batch in batches:
        rows, new = table.claim(words(batch))
        for key, row, is_new in zip(batch, rows.tolist(), new.tolist(), strict=True):
            assert is_new == (key not in expected)
            assert row == expected.setdefault(key, len(expected))
        table.columns["seen"][rows] += 1
    assert len(table) == len(expected)
    asked = [*expected, 61, 2**64 - 3]
    assert table.find(words(asked)).tolist() == [expected.get(key, -1) for key in asked]
    assert (table.columns["seen"][: len(table)] > 0).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=200))
@settings(deadline=None)
def test_keys_of_two_words_differ_in_either(pairs: list[tuple[int, int]]) -> None:
    table = Table(2, {})
    rows, _ = table.claim(words([low for low, _ in pairs]), words([high for _, high in pairs]))
    assert len(table) == len(set(pairs)) == len(set(rows.tolist()))


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=1, max_size=300), st.integers(0, 2**32))
@settings(deadline=None)
def test_what_is_kept_is_found_again_with_its_columns(keys: list[int], seed: int) -> None:
    table = Table(1, {"mark": np.int64})
    rows, _ = table.claim(words(keys))
    table.columns["mark"][rows] = np.arange(len(keys))
    kept = np.random.default_rng(seed).random(len(keys)) < 0.5
    table.keep(kept)
    found = table.find(words(keys))
    assert ((found >= 0) == kept).all()
    assert (table.columns["mark"][found[kept]] == np.flatnonzero(kept)).all()


def test_a_remembered_identity_costs_at_most_forty_bytes() -> None:
    """As docs/benchmarks.md states. The room depends on when columns and index grew, so several sizes are tried."""
    random = np.random.default_rng(1)
    for size in (50_000, 70_000, 131_000, 200_000):
        table = Table(2, {"mark": np.uint32})
        for _ in range(size // 1000):
            table.claim(*random.integers(0, 2**63, (2, 1000)).astype(np.uint64))
        assert table.nbytes <= 40 * len(table), size


def test_more_rows_than_the_index_can_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has 32 bits for a row: one more would be another key's row."""
    monkeypatch.setattr("tidegate.operators.columns.hash_table.ROWS_MAX", 1000)
    table = Table(1, {})
    table.claim(words(list(range(1000))))
    with pytest.raises(OverflowError, match="needs 1001; use more shards"):
        table.claim(words([5000]))
