"""The example's second count shares nothing with the first, and finds what is wrong."""

import json
from collections import Counter
from pathlib import Path

import pytest

from examples.azure import sample
from examples.azure.check import counted, differences
from examples.azure.convert import convert, customer_of, events

SAMPLE = Path(sample.__file__).with_name("sample.csv")


def test_the_sample_is_what_its_program_writes() -> None:
    assert SAMPLE.read_text() == "".join(line + "\n" for line in sample.rows())


def test_sql_and_python_follow_the_same_rule_for_customers() -> None:
    lines = SAMPLE.read_text().splitlines()
    python = Counter(customer_of(row) for row in range(1, len(lines)))
    sql: Counter[str] = Counter()
    for (customer, meter, window, _), total in counted(SAMPLE).items():
        if (meter, window) == ("requests", "hour"):
            sql[customer] += int(total)
    assert python == sql


def test_both_counts_agree_on_what_was_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "events.ndjson"
    assert convert(SAMPLE, target) == sample.ROWS
    converted = [json.loads(line) for line in target.read_text().splitlines()]
    sums = {
        meter: sum(int(total) for (_, m, w, _), total in counted(SAMPLE).items() if (m, w) == (meter, "day"))
        for meter in ("tokens_in", "tokens_out", "requests")
    }
    assert sums["requests"] == len({event["id"] for event in converted}) == sample.ROWS
    assert sums["tokens_in"] == sum(event["data"]["input_tokens"] for event in converted)
    assert sums["tokens_out"] == sum(event["data"]["output_tokens"] for event in converted)


def test_a_total_that_differs_is_told() -> None:
    right = counted(SAMPLE)
    first, second, *_ = right
    wrong = {key: total for key, total in right.items() if key != second} | {
        first: "x",
        ("n", "m", "hour", 0): "1",
    }
    assert not differences(right, dict(right))
    assert len(differences(right, wrong)) == 3


def test_times_keep_their_digits() -> None:
    (line,) = events(["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.6805900,374,44"])
    event = json.loads(line)
    assert event["time"] == "2023-11-16T18:15:46.6805900Z"
    assert event["data"] == {"input_tokens": 374, "output_tokens": 44}


def test_another_file_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the columns"):
        list(events(["a,b", "1,2"]))
