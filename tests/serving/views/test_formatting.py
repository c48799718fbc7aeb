from decimal import Decimal

import pytest

from tidegate.serving.views.formatting import age, brief, clipped, grouped, instant, moment


@pytest.mark.parametrize(
    ("at", "full", "short"),
    [
        (0, "1970-01-01T00:00:00Z", "1970-01-01"),
        (1_667_240_100_000_000, "2022-10-31T18:15:00Z", "2022-10-31 18:15"),
        (1_500_000, "1970-01-01T00:00:01.500000Z", "1970-01-01 00:00"),
        (2_932_896 * 86_400_000_000, "9999-12-31T00:00:00Z", "9999-12-31"),
    ],
)
def test_instants(at: int, full: str, short: str) -> None:
    assert (instant(at), moment(at)) == (full, short)


def test_quantities_stay_exact() -> None:
    assert grouped("123456789012345678901234567890.25") == "123,456,789,012,345,678,901,234,567,890.25"
    assert grouped(0) == "0"


@pytest.mark.parametrize(
    ("quantity", "text"),
    [
        ("0", "0"),
        ("0.1234", "0.12"),
        ("999", "999"),
        ("1000", "1k"),
        ("1200", "1.2k"),
        # Cut off: what is not yet a million does not look like one.
        ("999999", "999k"),
        ("1999999", "1.99M"),
        ("2000000000", "2G"),
        ("1000000000000000", "1P"),
        ("1234567890123456789", "1.23E"),
        ("999999999999999999999999999999.9", "999R"),
        ("1000000000000000000000000000000", "1Q"),
        ("0.000000000000000000000001", "0.00"),
    ],
)
def test_brief_quantities_fit_five_characters_and_are_never_rounded_up(quantity: str, text: str) -> None:
    assert brief(Decimal(quantity)) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("us", "text"),
    [(-5, "0 ms"), (38_400, "38 ms"), (4_200_000, "4.2 s"), (200_000_000, "3 min"), (8_000_000_000, "2 h")],
)
def test_ages(us: int, text: str) -> None:
    assert age(us) == text


def test_a_payload_cannot_write_to_the_terminal() -> None:
    """A payload comes from outside, and escape sequences in it must stay text."""
    assert clipped("a\x1b[31mb\nc", 40) == "a\\x1b[31mb\\nc"
    assert clipped("x" * 50, 10) == "x" * 9 + "…"
