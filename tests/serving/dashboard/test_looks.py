"""For everybody: readable by machines that read pages out, on a phone, in light and dark."""

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.serving.dashboard.site import PATIENCE_MS, Reader, Site, is_wider_than_its_window, shot, wait_until

PATIENCE: Any = {"timeout": PATIENCE_MS}
BAD = ("serious", "critical")


@pytest.fixture(scope="package")
def seen(site: Site) -> str:
    """A customer with something of everything: a cap reached, overage, alerts, hours."""
    site.use("seen", calls=6, tokens=1400, seats=3)
    site.use("seen", hours_ago=20, tokens=70)
    hours(site, "seen", 1470)
    return "seen"


def hours(site: Site, customer: str, tokens: int) -> list[int]:
    """The tokens of each hour, the newest first, once there are so many in all."""
    found: list[int] = []

    def are_metered() -> bool:
        answer = site.api.get(f"/v1/customers/{customer}/usage", params={"hours": 48}).json()
        found[:] = [int(one["total"]) for one in reversed(answer["hours"]) if one["meter"] == "tokens"]
        return sum(found) == tokens

    wait_until(are_metered)
    return found


def check(page: Page, part: str = "html") -> list[str]:
    """What the checker finds that is bad in a part of the page, and where."""
    found = Axe().run(page, part, {"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{one['id']}: {node['html']} {node['failureSummary']}"
        for one in found
        if one["impact"] in BAD
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_read_it(site: Site, reader: Reader, seen: str, theme: str) -> None:
    with reader.page(theme=theme) as page:
        page.goto("/#/")
        expect(page.locator('tr[data-customer="seen"][data-level="denied"]')).to_be_visible(**PATIENCE)
        expect(page.locator(".alerts")).to_contain_text("calls reached the cap", **PATIENCE)
        shot(page, f"overview-{theme}")
        assert check(page) == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 40")
        assert dark == (theme == "dark")
        page.goto("/#/customers/seen")
        expect(page.locator('[data-meter="calls"]')).to_have_attribute("data-level", "denied", **PATIENCE)
        for summary in page.locator("summary").all():
            summary.click()
        shot(page, f"customer-{theme}")
        assert check(page) == []
        page.get_by_role("button", name="Last 31 days").click()
        expect(page.get_by_role("heading", name="By day")).to_be_visible()
        page.get_by_role("button", name="Change cap of calls").click()
        assert check(page, "dialog") == []


def test_everybody_can_sign_in_and_read_a_frame(site: Site, reader: Reader, seen: str) -> None:
    token = site.key("seen's page", seen)
    with reader.page(None) as page:
        page.goto("/")
        expect(page.get_by_label("API key")).to_be_visible(**PATIENCE)
        assert check(page) == []
        page.goto(f"/embed#token={token}")
        expect(page.locator('[data-meter="calls"]')).to_be_visible(**PATIENCE)
        shot(page, "embed")
        assert check(page) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(site: Site, reader: Reader, seen: str, theme: str) -> None:
    with reader.page(width=360, theme=theme) as page:
        page.goto("/#/")
        expect(page.locator('tr[data-customer="seen"]')).to_be_visible(**PATIENCE)
        page.locator("summary").click()
        assert not is_wider_than_its_window(page)
        shot(page, f"overview-phone-{theme}")
        page.goto("/#/customers/seen")
        expect(page.locator("tide-bars").first).to_be_visible(**PATIENCE)
        for summary in page.locator("summary").all():
            summary.click()
        assert not is_wider_than_its_window(page)
        shot(page, f"customer-phone-{theme}")
        page.get_by_role("button", name="Change cap of calls").click()
        assert not is_wider_than_its_window(page)


def test_a_chart_has_its_figures_in_a_table(site: Site, reader: Reader, seen: str) -> None:
    with reader.page() as page:
        page.goto("/#/customers/seen")
        tokens = page.locator("figure").filter(has_text="tokens")
        expect(tokens.get_by_role("img")).to_have_attribute(
            "aria-label", "tokens, last 48 hours, as bars; the table below has the figures", **PATIENCE
        )
        tokens.locator("summary").click()
        # Older hours come by themselves, the newest with each change; a new hour may begin meanwhile.
        rows = tokens.locator("tbody tr td:nth-of-type(1)")
        expect(rows).to_have_text([f"{total:,}" for total in hours(site, seen, 1470)], **PATIENCE)
        site.use(seen, tokens=1)
        expect(rows).to_have_text([f"{total:,}" for total in hours(site, seen, 1471)], **PATIENCE)
