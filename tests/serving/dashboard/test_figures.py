"""What the pages make of figures and times, against the same in Python."""

import random
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from tests.serving.dashboard.site import Reader, Site
from tidegate.operators.model.periods import get_buckets
from tidegate.serving.views.formatting import brief, grouped

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """One for all, as these leave it as it is; not at `/`, which asks for a key."""
    with Reader(browser, site).page() as page:
        page.goto("/embed?token=none")
        yield page


def called(page: Page, module: str, name: str, rows: list[list[Any]]) -> list[Any]:
    """What a function of a module gives for each row of arguments."""
    run = """async ([module, name, rows]) => {
        const found = (await import(module))[name];
        return rows.map((row) => found(...row));
    }"""
    return list(page.evaluate(run, [f"/static/js/{module}.js", name, rows]))


def test_quantities_are_shown_as_exactly_as_they_came(page: Page) -> None:
    """A double has 16 digits; a bill may need more."""
    chance = random.Random(5)
    texts = [
        "0",
        "-1",
        "999",
        "1000",
        "999999.999999999999",
        "1000000000000000",
        "0.1",
        "-1234567.25",
    ]
    texts += [f"{Decimal(chance.randrange(10**15 * 10**6)).scaleb(-6):f}" for _ in range(200)]
    texts += [str(chance.randrange(10 ** (digits + 1))) for digits in range(15, 31)]
    texts += ["9" * 30 + "." + "9" * 24, "1" + "0" * 30, "1" + "0" * 18]
    assert called(page, "format", "grouped", [[text] for text in texts]) == [grouped(text) for text in texts]
    positive = [text for text in texts if not text.startswith("-")]
    # As in the terminal, but for zeros at the end.
    said = [
        re.sub(r"\.?0+(?=[kMGTPEZYRQ]?$)", "", one) if "." in one else one
        for one in map(brief, map(Decimal, positive))
    ]
    assert called(page, "format", "brief", [[text] for text in positive]) == said


@pytest.mark.parametrize(
    ("zone", "now"),
    [
        ("UTC", "2026-11-22T13:05:00"),
        ("Europe/Berlin", "2026-03-29T08:00:00"),
        ("Europe/Berlin", "2026-10-25T01:30:00"),
        ("America/New_York", "2026-11-01T06:30:00"),
        ("Asia/Kathmandu", "2026-06-30T18:20:00"),
        # Half an hour, and midnights that are not there or there twice.
        ("Australia/Lord_Howe", "2026-04-05T12:00:00"),
        ("America/Santiago", "2026-09-06T20:00:00"),
        ("America/Havana", "2026-11-01T12:20:00"),
    ],
)
def test_slots_of_charts_are_the_windows_that_the_flow_counts_in(page: Page, zone: str, now: str) -> None:
    """Also across a change of the clocks: a chart that shifts by an hour tells every figure wrong."""
    ms = int(np.datetime64(now, "ms").astype(np.int64))
    found = called(
        page,
        "buckets",
        "slots",
        [[[], "calls", "day", 31, ms, zone], [[], "calls", "hour", 24, ms, zone]],
    )
    days, hours = ([slot["start"] for slot in slots] for slots in found)
    counted = get_buckets(zone)
    at = np.arange(days[0], ms + 1, HOUR_MS // 4, dtype=np.int64) * 1000
    assert days == sorted(set((counted.find_days(at)[0] // 1000).tolist()))
    recent = at[at >= hours[0] * 1000]
    assert hours == sorted(set((counted.find_hours(recent)[0] // 1000).tolist()))


def test_a_message_is_read_however_it_is_cut(page: Page) -> None:
    stream = (
        'retry: 1000\n\n: \n\nid: 7.1\nevent: usage\ndata: {"a":\ndata: "ü"}\n\nid: 8.1\r\ndata: 2\r\n\r\n'
    )
    run = """async (stream) => {
        const { Parser } = await import("/static/js/stream.js");
        return Array.from({ length: stream.length }, (_, cut) => {
            const parser = new Parser();
            return [...parser.feed(stream.slice(0, cut)), ...parser.feed(stream.slice(cut))];
        });
    }"""
    want = [
        {"event": "usage", "data": '{"a":\n"ü"}', "id": "7.1"},
        {"event": "message", "data": "2", "id": "8.1"},
    ]
    for cut, read in enumerate(page.evaluate(run, stream)):
        assert read == want, cut


def test_a_difference_is_right_where_both_have_more_digits_than_a_number(page: Page) -> None:
    chance = random.Random(6)
    pairs = [
        ("9007199254740993", "9007199254740992"),
        ("1" + "0" * 30, "9" * 30),
        ("0.5", "-0.25"),
        ("3", "5"),
    ]
    pairs += [(str(10**25 + chance.randrange(99)), f"{10**25 + chance.randrange(99)}.5") for _ in range(50)]
    found = called(page, "format", "more", [list(pair) for pair in pairs])
    assert found == [float(Fraction(one) - Fraction(other)) for one, other in pairs]


def test_a_large_total_still_has_a_pace(page: Page) -> None:
    run = """async () => {
        const { Pace } = await import("/static/js/pace.js");
        const pace = new Pace();
        for (let s = 0; s <= 60; s += 1) pace.add("m", s * 1000, `1000000000000000000000${s + 100}.5`);
        return pace.rate("m", 60000, [], 60000);
    }"""
    assert page.evaluate(run) == 1


def test_the_time_to_the_cap_is_that_of_the_last_minute(page: Page) -> None:
    run = """async () => {
        const { Pace, timeToCap } = await import("/static/js/pace.js");
        const pace = new Pace(), meter = { meter: "m", adds_up: true, remaining: "600", limit: { on_cap: "block" } };
        const told = [];
        for (let second = 0; second <= 120; second += 1) {
            // Five a second for a minute, then one.
            pace.add("m", second * 1000, second <= 60 ? second * 5 : 300 + second - 60);
            if (second % 60 === 0 && second) told.push(pace.rate("m", second * 1000, [], second * 1000));
        }
        const left = [
            timeToCap(meter, 5, null, 0),
            timeToCap(meter, 5, 60000, 0),
            timeToCap({ ...meter, adds_up: false }, 5, null, 0),
            timeToCap({ ...meter, remaining: "0" }, 5, null, 0),
            timeToCap(meter, 0, null, 0),
        ];
        return { told, left, rest: pace.rate("m", 200000, [], 120000) };
    }"""
    found = page.evaluate(run)
    assert found == {"told": [5, 1], "left": [120, None, None, 0, None], "rest": 0}
