from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tidegate.settings.durations import Duration, format_duration, read_duration

DURATION: TypeAdapter[timedelta] = TypeAdapter(Duration)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("500ms", 0.5),
        ("10s", 10),
        ("1.5s", 1.5),
        ("0.1s", 0.1),
        ("1m", 60),
        ("1h", 3600),
        ("1h30m", 5400),
        ("2d", 172_800),
        (" 10s ", 10),
        ("PT10S", 10),
        ("P2DT1H", 176_400),
    ],
)
def test_reads(text: str, seconds: float) -> None:
    assert DURATION.validate_python(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "10", "ten", "10 s", "s", "-1s", "1y", "10S", "1e3s", "1:00", "PX", "٣s", "9" * 12 + "d", 10]
)
def test_a_unit_is_needed_and_nothing_is_guessed(text: object) -> None:
    """`TIDEGATE_LATENESS=24` must not become a day or 24 seconds depending on who reads it."""
    with pytest.raises(ValidationError):
        DURATION.validate_python(text)


@given(st.integers(0, 10**12))
def test_what_is_shown_reads_back(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert read_duration(format_duration(duration)) == duration
