"""Who sees what: operators by key, customers by token in a frame, and neither leaves a trace of its secret."""

from typing import Any

from playwright.sync_api import Page, expect

from tests.serving.dashboard.site import PATIENCE_MS, Reader, Site, shot
from tidegate.connectors.sqlite.api_keys import KeyFile

PATIENCE: Any = {"timeout": PATIENCE_MS}


def requests_of(page: Page) -> list[str]:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    return asked


def test_an_operator_signs_in_with_a_key_that_stays_in_the_tab(site: Site, reader: Reader) -> None:
    token = site.key("watcher")
    with reader.page(None) as page:
        asked = requests_of(page)
        page.goto("/#/customers/someone")
        page.get_by_label("API key").fill("tg_wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("This key is not good.", **PATIENCE)
        shot(page, "sign-in")
        page.get_by_label("API key").fill(site.key("theirs", "someone"))
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("one customer’s own", **PATIENCE)
        page.get_by_label("API key").fill(token)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="someone")).to_be_visible(**PATIENCE)
        # It may read and nothing else, so nothing else is offered.
        expect(page.locator('[data-meter="calls"]')).to_be_visible(**PATIENCE)
        expect(page.get_by_role("button", name="Change cap")).to_have_count(0)
        assert token not in page.url + "".join(asked)
        assert page.evaluate("[document.cookie, localStorage.length]") == ["", 0]

        keys = KeyFile(site.served.folder / "data" / "keys.db")
        keys.revoke(token.split("_")[1])
        keys.close()
        # A stream ends with its key; else it would at its next heartbeat.
        site.use("someone", tokens=1)
        expect(page.get_by_role("alert")).to_have_text("The key is good no more.", **PATIENCE)
        assert page.evaluate("sessionStorage.length") == 0
    assert all("401" in one for one in reader.complaints)
    reader.complaints.clear()


def test_an_operator_signs_out(site: Site, reader: Reader) -> None:
    with reader.page(None) as page:
        page.goto("/")
        page.get_by_label("API key").fill(site.served.tokens["all"])
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("API key")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_a_customer_sees_their_own_usage_in_a_frame(site: Site, reader: Reader) -> None:
    token = site.key("frame", "framed")
    site.use("framed", calls=2, tokens=20)
    with reader.page() as page:
        asked = requests_of(page)
        page.goto(site.shop.framing(f"{site.url}/embed#token={token}"))
        inside = page.frame_locator("iframe")
        expect(inside.locator('[data-meter="tokens"] [data-total="20"]')).to_be_visible(**PATIENCE)
        expect(inside.get_by_role("heading", name="framed")).to_be_visible()
        site.use("framed", tokens=5)
        expect(inside.locator('[data-meter="tokens"] [data-total="25"]')).to_be_visible(**PATIENCE)
        expect(inside.get_by_role("button", name="Change cap")).to_have_count(0)
        frame = page.frames[1]
        assert token not in frame.evaluate("location.href + history.length")
        assert not [url for url in asked if url.startswith(site.url) and token in url.partition("#")[0]]
        shot(page, "framed")


def test_a_frame_gets_a_new_token_by_its_fragment(site: Site, reader: Reader) -> None:
    first = site.key("first", "one")
    second = site.key("second", "other")
    with reader.page(None) as page:
        page.goto(f"/embed#token={first}")
        expect(page.get_by_role("heading", name="one")).to_be_visible(**PATIENCE)
        page.evaluate("token => { location.hash = `token=${token}` }", second)
        expect(page.get_by_role("heading", name="other")).to_be_visible(**PATIENCE)


def test_other_sites_frame_neither_page_and_nobody_frames_the_operators(site: Site, reader: Reader) -> None:
    token = site.key("stranger", "mine")
    for shop, src in ((site.stranger, f"/embed#token={token}"), (site.shop, "/")):
        with reader.page() as page:
            page.goto(shop.framing(site.url + src))
            expect(page.locator("iframe")).to_be_visible()
            page.wait_for_function("frames.length === 1")
            assert "frame-ancestors" in "".join(reader.complaints)
            assert page.frames[1].url.startswith("chrome-error:")
        reader.complaints.clear()


def test_a_token_where_logs_would_see_it_is_not_taken(site: Site, reader: Reader) -> None:
    with reader.page(None) as page:
        page.goto(f"/embed?token={site.served.tokens['acme']}")
        expect(page.get_by_role("alert")).to_contain_text("The token belongs behind a #", **PATIENCE)


def test_an_operators_key_opens_no_frame(site: Site, reader: Reader) -> None:
    with reader.page() as page:
        page.goto(f"/embed#token={site.served.tokens['all']}&customer=anybody")
        expect(page.get_by_role("alert")).to_contain_text("Not a customer’s token", **PATIENCE)
        # Nor does the key that this tab has for the other page.
        page.goto("/embed?#customer=anybody")
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("It needs a token", **PATIENCE)
