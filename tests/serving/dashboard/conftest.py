from collections.abc import Iterator

import pytest

from tests.support import servers

pytest.importorskip("playwright", reason="needs Playwright for a browser")

from playwright.sync_api import Browser, sync_playwright

from tests.serving.dashboard.site import Reader, Site, answers, chromium, wait_until

# As root in a container: no sandbox, and nothing that calls home.
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# By package and not by session: Playwright's loop runs in this thread, and no other may begin meanwhile.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        servers.lacking("needs a browser: /usr/bin/chromium, or the one that CHROMIUM names")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=ARGS)
        servers.ran(f"Chromium {browser.version}")
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("dashboard"))
    wait_until(lambda: answers(site.url))
    yield site
    site.close()


@pytest.fixture
def reader(browser: Browser, site: Site) -> Iterator[Reader]:
    """Whatever a page says on the console fails the test at its end, but for what it takes out of `complaints`."""
    reader = Reader(browser, site)
    yield reader
    assert reader.complaints == []
