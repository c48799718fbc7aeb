"""Messages become lines: nothing is added, nothing lost, whatever line breaks the senders left."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.operators.events.framing import frame_messages

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(st.text(max_size=5), values, max_size=3) | st.lists(values, max_size=3)
styles = st.sampled_from((None, 0, 1, 4))
breaks = st.sampled_from(("", "\n", "\r\n", "\n\n"))


def lines_of(block: bytes) -> list[bytes]:
    return [line for line in block.split(b"\n") if line.strip()]


@given(st.lists(st.tuples(st.lists(records, min_size=1, max_size=3), styles, breaks), max_size=6))
def test_each_payload_has_its_line_however_it_was_written(
    messages: list[tuple[list[Any], int | None, str]],
) -> None:
    """One value over several lines is one payload; several values are NDJSON, which has a value a line."""
    written = []
    for records, indent, ending in messages:
        indent = indent if len(records) == 1 else None
        text = (ending or "\n").join(json.dumps(record, indent=indent) for record in records) + ending
        written.append(text.replace("\n", ending or "\n").encode())
    block, ends = frame_messages(written)
    assert [json.loads(line) for line in lines_of(block)] == [
        r for records, _, _ in messages for r in records
    ]
    counts = ends or list(range(1, len(written) + 1))
    assert len(counts) == len(written)
    lines = block.split(b"\n")
    for (records, _, _), start, end in zip(messages, [0, *counts], counts, strict=False):
        assert [json.loads(line) for line in lines[start:end]] == records, "lines are counted by message"


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (b'{"a":1}', [b'{"a":1}']),
        (b'{"a":1}\n', [b'{"a":1}']),
        (b'\n{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'{"a":\n1}', [b'{"a": 1}']),
        (b'[\n{"a":1},\r\n{"b":2}\n]', [b'[ {"a":1},  {"b":2} ]']),
        # A line of NDJSON that is broken costs itself, not its neighbours.
        (b'{"a":\n{"b":2}', [b'{"a":', b'{"b":2}']),
        (b'{"b":2}\n{"a":', [b'{"b":2}', b'{"a":']),
        # One event that was cut off is one reject, not one a line.
        (b'{\n  "id": 1,\n  "da', [b'{\v  "id": 1,\v  "da']),
        (b"no\njson", [b"no\vjson"]),
        # No text has a line break, and no space makes one event of what was none.
        (b'{"text":"a\nb"}', [b'{"text":"a\vb"}']),
        (None, [b"null"]),
        (b"", []),
        (b"\n \n", []),
        (b"[" * 100_000 + b"\n" + b"]" * 100_000, [b"[" * 100_000 + b"\v" + b"]" * 100_000]),
    ],
)
def test_what_a_message_becomes(value: bytes | None, lines: list[bytes]) -> None:
    block, ends = frame_messages([b"before", value, b"after"])
    assert lines_of(block) == [b"before", *lines, b"after"]
    at = ends or [1, 2, 3]
    assert block.split(b"\n")[at[1] : at[2]] == [b"after"]
