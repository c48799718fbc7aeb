"""The statement on the operator's page of a customer; a customer's own page has none."""

from playwright.sync_api import expect

from tests.serving.dashboard.site import Reader, Site
from tests.serving.http.routes.test_statement import keep, line


def test_a_customers_page_has_the_statement(reader: Reader, site: Site) -> None:
    (site.served.folder / "data" / "reconciliation").mkdir(exist_ok=True)
    keep(site.served.folder, line("billed", "inv_77", units="1500", unbilled="9", cause="gap"))
    site.use("billed", calls=1)
    with reader.page(key="read") as page:
        page.goto("/#/customers/billed")
        row = page.locator("[data-line=tokens]")
        expect(row).to_contain_text("inv_77")
        expect(row).to_contain_text("12.34")
        expect(row).to_contain_text("1.5k")
    own = site.key("billed's page", customer="billed")
    with reader.page(key=None) as page:
        page.goto(f"/embed#token={own}")
        expect(page.locator("h1")).to_contain_text("billed")
        expect(page.locator("[data-line]")).to_have_count(0)
