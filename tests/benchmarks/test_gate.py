"""The benchmark of the gate measures what it says, and does not measure a store that does not answer."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import gate


def test_every_part_measures_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.json"
    options = "--stores sqlite --only near,far,settle --rounds 1 --checks 100 --json"
    monkeypatch.setattr("sys.argv", ["gate", *options.split(), str(report)])
    monkeypatch.setattr(gate, "WAITING", (0, 10))
    gate.main()
    found = json.loads(report.read_text())
    assert set(found) == {"near sqlite", "far sqlite", "settle sqlite"}
    assert float(found["near sqlite"]["p99 µs"]) > 0 and float(found["far sqlite"]["p99 ratio"]) > 0
    assert float(found["settle sqlite"]["ns per event, 10 waiting"]) > 0


def test_a_store_that_does_not_answer_is_not_measured(tmp_path: Path) -> None:
    place = gate.Place("sqlite", "", tmp_path / "nowhere")
    options = argparse.Namespace(rounds=1, checks=10)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gate, "filled", lambda store: None)
        with pytest.raises(AssertionError, match="degraded=True"):
            gate.near(place, options)
