"""What people do with the dashboard, in a browser: watch, be stopped, be let go, come back."""

import re
import time
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.serving.dashboard.site import (
    EXPECTED,
    PATIENCE_MS,
    Reader,
    Site,
    answers,
    is_wider_than_its_window,
    shot,
    timing,
    wait_until,
)

PATIENCE: Any = {"timeout": PATIENCE_MS}


def total_of(page: Page, meter: str, total: int) -> Any:
    return page.locator(f'[data-meter="{meter}"] [data-total="{total}"]')


def test_an_event_is_on_the_page_as_soon_as_it_is_counted(site: Site, reader: Reader) -> None:
    site.use("watched", tokens=300)
    with reader.page() as page:
        page.goto("/#/customers/watched")
        expect(total_of(page, "tokens", 300)).to_be_visible(**PATIENCE)
        began = time.perf_counter()
        site.use("watched", tokens=12)
        expect(total_of(page, "tokens", 312)).to_be_visible(**PATIENCE)
        timing("event_sent_to_shown_s", time.perf_counter() - began)
        expect(page.locator("tide-bars").first).to_be_visible()
        # Without a reload, on the overview too.
        page.goto("/#/")
        expect(page.locator('tr[data-customer="watched"]')).to_contain_text("31 %", **PATIENCE)
        site.use("watched", tokens=688)
        expect(page.locator('tr[data-customer="watched"]')).to_contain_text("100 %", **PATIENCE)
        expect(page.get_by_role("heading", name="Books").locator("..")).to_contain_text("balanced")


def test_a_cap_that_engages_is_raised_in_the_page_by_keyboard_alone(site: Site, reader: Reader) -> None:
    with reader.page() as page:
        page.goto("/#/customers/stopped")
        calls = page.locator('[data-meter="calls"]')
        expect(calls).to_have_attribute("data-level", "free", **PATIENCE)
        site.use("stopped", calls=5)
        expect(calls).to_have_attribute("data-level", "denied", **PATIENCE)
        expect(page.locator(".alerts")).to_contain_text("calls reached the cap", **PATIENCE)
        assert not site.may_call("stopped")

        reach(page, "Change cap of calls")
        page.keyboard.press("Enter")
        expect(page.get_by_label("New cap")).to_be_focused()
        page.keyboard.type("not a number")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("Needs a number such as 25000 or 1800.5")
        expect(page.get_by_label("New cap")).to_be_focused()
        page.keyboard.press("Control+A")
        page.keyboard.type("10")
        page.keyboard.press("Tab")
        page.keyboard.type("they asked")
        shot(page, "cap")
        page.keyboard.press("Enter")
        expect(page.locator("dialog")).to_have_count(0, **PATIENCE)
        assert site.may_call("stopped"), "the very next request passes"
        expect(calls).to_have_attribute("data-level", "free", **PATIENCE)
        expect(page.get_by_role("button", name="Change cap of calls")).to_be_focused()
    assert site.api.get("/v1/catalog/versions").json()["versions"][0]["note"] == "they asked"


def reach(page: Page, name: str) -> None:
    """Goes by Tab until the button of this name has the focus; what has it on the way has to show that."""
    for _ in range(40):
        page.keyboard.press("Tab")
        shown, text = page.evaluate(
            "[getComputedStyle(document.activeElement).outlineStyle, document.activeElement.textContent]"
        )
        assert shown != "none", f"no focus to be seen on {text!r}"
        if text == name:
            return
    raise AssertionError(f"{name} cannot be reached by Tab")


def test_two_who_change_a_cap_do_not_overwrite_each_other(site: Site, reader: Reader) -> None:
    path = "/v1/customers/contested/limits/calls"
    with reader.page() as page:
        page.goto("/#/customers/contested")
        with page.expect_response(lambda answer: answer.url.endswith(path)):
            page.get_by_role("button", name="Change cap of calls").click()
        tag = site.api.get(path).headers["etag"]
        assert site.api.put(path, json={"cap": 77}, headers={"if-match": tag}).status_code == 200
        page.get_by_label("New cap").fill("88")
        page.get_by_role("button", name="Save cap").click()
        expect(page.get_by_role("alert")).to_contain_text("the cap is now 77", **PATIENCE)
        assert site.api.get(path).json()["effective"]["cap"] == "77"
        page.get_by_role("button", name="Save cap").click()
        expect(page.locator("dialog")).to_have_count(0, **PATIENCE)
        assert site.api.get(path).json()["effective"]["cap"] == "88"
        page.get_by_role("button", name="Change cap of calls").click()
        page.get_by_role("button", name="Back to the plan’s limit").click()
        expect(page.locator("dialog")).to_have_count(0, **PATIENCE)
        assert site.api.get(path).json()["effective"]["cap"] == "5"
    assert "412" in reader.complaints.pop()


@pytest.mark.parametrize("typed", ["7,5", "25,000", "1 000", "1e3", "-1"])
def test_a_cap_that_may_mean_two_things_is_not_guessed(site: Site, reader: Reader, typed: str) -> None:
    """A comma is a decimal sign in Berlin: 7,5 was saved as 75."""
    with reader.page() as page:
        page.goto("/#/customers/comma")
        page.get_by_role("button", name="Change cap of calls").click()
        page.get_by_label("New cap").fill(typed)
        page.get_by_role("button", name="Save cap").click()
        expect(page.get_by_role("alert")).to_contain_text("with a point and without separators", **PATIENCE)
    assert site.api.get("/v1/customers/comma/limits/calls").json()["effective"]["cap"] == "5"


def test_it_comes_back_by_itself_when_the_service_does(site: Site, reader: Reader) -> None:
    site.use("patient", tokens=1)
    with reader.page() as page:
        page.goto("/#/customers/patient")
        expect(total_of(page, "tokens", 1)).to_be_visible(**PATIENCE)
        # Not any status: what a killed service has not answered goes on being told as loading.
        state = page.locator(".connection")
        site.served.kill()
        try:
            expect(state).to_have_text("Reconnecting", **PATIENCE)
            # What was known stays.
            expect(total_of(page, "tokens", 1)).to_be_visible()
            shot(page, "reconnecting")
        finally:
            # All other tests need it too.
            site.restart()
            wait_until(lambda: answers(site.url))
        expect(state).to_have_text("Live", **PATIENCE)
        site.use("patient", tokens=2)
        expect(total_of(page, "tokens", 3)).to_be_visible(**PATIENCE)
    assert [one for one in reader.complaints if EXPECTED not in one] == []
    reader.complaints.clear()


def test_an_answer_that_is_cut_off_is_asked_for_again(site: Site, reader: Reader) -> None:
    """As by a service that dies in the middle of it; else a page would stay without its history."""
    site.use("cut", tokens=1)
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            route.fulfill(content_type="application/json", body='{"hours": [')
        else:
            route.continue_()

    with reader.page() as page:
        page.route("**/usage?*", answer)
        with page.expect_response(lambda found: "/usage?" in found.url and len(asked) > 1):
            page.goto("/#/customers/cut")


def test_a_page_opened_while_the_service_is_away_waits_for_it(site: Site, reader: Reader) -> None:
    with reader.page() as page:
        page.goto("/#/")
        expect(page.get_by_role("heading", name="Overview")).to_be_visible(**PATIENCE)
        page.route("**/v1/key", lambda route: route.abort())
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("The service does not answer", **PATIENCE)
        page.unroute("**/v1/key")
        expect(page.get_by_role("heading", name="Overview")).to_be_visible(**PATIENCE)
    assert [one for one in reader.complaints if EXPECTED not in one] == []
    reader.complaints.clear()


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "\"'><script>alert(1)</script>",
    "javascript:alert(1)",
    "\u202egnp.tpircs\u202c",
    "שלום עולם",
    "../../admin",
    "a/b?c#d&e=%2F%00",
    "${alert(1)}{{7*7}}",
    "x" * 256,
]


def test_names_are_text_whatever_is_in_them(site: Site, reader: Reader) -> None:
    for name in HOSTILE:
        site.use(name, tokens=999)
    with reader.page(width=360) as page:
        page.goto("/#/")
        for name in HOSTILE:
            page.get_by_role("textbox", name="Customer").fill(name)
            page.get_by_role("button", name="Show").click()
            expect(total_of(page, "tokens", 999)).to_be_visible(**PATIENCE)
            shown = name.replace("\u202e", "\\u202e").replace("\u202c", "\\u202c")
            expect(page.get_by_role("heading", level=1)).to_have_text(shown)
            assert not is_wider_than_its_window(page), name
        page.goto("/#/")
        for name in HOSTILE:
            links = page.locator("tr[data-customer] a")
            link = links.filter(has_text=re.compile(re.escape(name[:20]))) if "\u202e" not in name else None
            if link is not None:
                expect(link).to_be_visible(**PATIENCE)
        assert not is_wider_than_its_window(page)
        assert page.locator("img, iframe, main script").count() == 0
        shot(page, "hostile-names")
        page.locator("tr[data-customer] a").filter(has_text="../../admin").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("../../admin", **PATIENCE)


@pytest.mark.parametrize("name", [".", ".."])
def test_names_that_browsers_take_for_steps_in_a_path_are_not_asked_for(
    site: Site, reader: Reader, name: str
) -> None:
    with reader.page() as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"/#/customers/{name}")
        expect(page.get_by_role("alert")).to_contain_text("no address on the web", **PATIENCE)
    assert [url for url in asked if "/v1/" in url] == [f"{site.url}/v1/key"]


def test_what_is_accepted_and_not_metered_is_shown_with_its_cause(site: Site, reader: Reader) -> None:
    """To the operator by cause, to the customer what is the customer's own; a hostile name is text."""
    site.send("sender", "llm.tokens", {"tokens": "900"})
    site.send("sender", "<img src=x onerror=alert(1)>\u202e", {})
    site.send("someone else", "llm.tokenz", {"tokens": 1})
    with reader.page() as page:
        page.goto("/#/")
        panel = page.get_by_role("heading", name="Accepted, not metered").locator("../..")
        expect(panel).to_contain_text("'tokens' is a number written as text", **PATIENCE)
        expect(panel).to_contain_text("llm.tokenz no meter takes events of this name", **PATIENCE)
        expect(panel).to_contain_text("\\u202e")
        expect(panel.locator("img")).to_have_count(0)
        expect(panel.get_by_role("link", name="someone else")).to_be_visible()
        assert not is_wider_than_its_window(page)
        shot(page, "unmetered-overview")
        page.goto("/#/customers/sender")
        mine = page.get_by_role("heading", name="Received, not metered").locator("../..")
        expect(mine).to_contain_text("'tokens' is a number written as text", **PATIENCE)
        expect(mine).not_to_contain_text("llm.tokenz")
        shot(page, "unmetered-customer")
