"""A column of times reads as its texts do one by one."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.operators.events.rfc3339 import INVALID, parse, parse_column
from tidegate.operators.model.periods import MAX_AT, MIN_AT

GOOD = [
    ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00"),
    ("2026-11-22t10:00:00.250z", "2026-11-22T10:00:00.250"),
    ("2026-11-22T10:00:00.1234567891Z", "2026-11-22T10:00:00.123456"),
    ("2026-11-22T10:00:00+05:45", "2026-11-22T04:15:00"),
    ("2026-11-22T10:00:00-23:59", "2026-11-23T09:59:00"),
    ("2026-11-22T10:00:00-00:00", "2026-11-22T10:00:00"),
    ("2024-02-29T23:59:59.999999Z", "2024-02-29T23:59:59.999999"),
    ("2000-02-29T00:00:00Z", "2000-02-29T00:00:00"),
    ("2026-12-31T23:59:60Z", "2026-12-31T23:59:59.999999"),
    ("2027-01-01T05:44:60+05:45", "2026-12-31T23:59:59.999999"),
]
BAD = [
    "", "2026-11-22", "2026-11-22T10:00:00", "2026-11-22 10:00:00Z", "2026-11-22T10:00Z", "20261122T100000Z",
    "2026-W47-7T10:00:00Z", "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z", "2026-02-30T00:00:00Z",
    "2025-02-29T00:00:00Z", "2100-02-29T00:00:00Z", "2026-11-22T24:00:00Z", "2026-11-22T10:60:00Z",
    "2026-11-22T10:00:61Z", "2026-11-22T10:00:60Z", "2026-11-22T10:00:00.Z", "2026-11-22T10:00:00,5Z",
    "2026-11-22T10:00:00+24:00", "2026-11-22T10:00:00+05:60", "2026-11-22T10:00:00+0545",
    "2026-11-22T10:00:00+05", "2026-11-22T10:00:00Zjunk", " 2026-11-22T10:00:00Z", "٢٠٢٦-11-22T10:00:00Z",
    "+2026-11-22T10:00:00Z", "2026-1-22T10:00:00Z", "2026-11-22T10:00:00z0",
]  # fmt: skip


def micros(text: str) -> int:
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(
        microseconds=1
    )


@pytest.mark.parametrize(("text", "expected"), GOOD)
def test_rfc_3339_is_read_to_the_microsecond(text: str, expected: str) -> None:
    assert parse(text) == micros(expected)
    assert parse_column([text]).tolist() == [micros(expected)]


@pytest.mark.parametrize("text", BAD)
def test_what_is_not_rfc_3339_is_refused_in_words(text: str) -> None:
    """A time that is guessed at would bill the wrong month."""
    with pytest.raises(ValueError, match="needs"):
        parse(text)
    assert parse_column([text, "2026-11-22T10:00:00Z"]).tolist() == [INVALID, micros("2026-11-22T10:00:00")]


TEXTS = st.builds(
    "{:04d}-{:02d}-{:02d}{}{:02d}:{:02d}:{:02d}{}{}".format,
    st.sampled_from([0, 1999, 2000, 2024, 2026, 2099, 2100]),
    st.integers(0, 13),
    st.integers(0, 32),
    st.sampled_from(["T", "t", " "]),
    st.integers(0, 24),
    st.integers(0, 60),
    st.integers(0, 61),
    st.sampled_from(["", ".", ".5", ".25", ".123", ".123456", ".123456789", ".x"]),
    st.sampled_from(["Z", "z", "+00:00", "-05:30", "+24:00", "+02:60", "", "Y"]),
)


@given(st.lists(TEXTS | st.sampled_from([text for text, _ in GOOD]), max_size=40))
def test_a_column_reads_as_its_texts_do(texts: list[str]) -> None:
    def one(text: str) -> int:
        try:
            at = parse(text)
        except ValueError:
            return INVALID
        return at if MIN_AT <= at < MAX_AT else INVALID

    assert parse_column(texts).tolist() == list(map(one, texts))
