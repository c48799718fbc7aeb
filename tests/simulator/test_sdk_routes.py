"""The simulator's routes against those that the official SDK knows: what it lacks is left out on purpose."""

import ast
import re
from pathlib import Path
from typing import Final

import dodopayments

from simulator.api import HANDLERS

CALLS: Final = {
    "_get": "GET",
    "_get_api_list": "GET",
    "_post": "POST",
    "_patch": "PATCH",
    "_put": "PUT",
    "_delete": "DELETE",
}
# By the start of their paths: what a platform sells beside metered usage, and what is done with the money.
LEFT_OUT: Final = (
    "/addons",
    "/balances/ledger",
    "/blocklist",
    "/brands",
    "/checkout",
    "/checkouts",
    "/customers/{}/customer-portal/session",
    "/customers/{}/emails",
    "/customers/{}/entitlement-grants",
    "/customers/{}/payment-methods",
    "/discounts",
    "/disputes",
    "/entitlements",
    "/grants",
    "/invoices",
    "/license_key_instances",
    "/license_keys",
    "/licenses",
    "/locales",
    "/moderation",
    "/payouts",
    "/product-collections",
    "/products/short_links",
    "/products/{}",
    "/refunds",
)
LEFT_OUT_ALONE: Final = {
    ("GET", "/payments/{}/retry"),
    ("POST", "/payments"),
    ("POST", "/payments/{}/retry"),
    ("POST", "/subscriptions"),
    ("POST", "/subscriptions/{}/charge"),
    ("POST", "/subscriptions/{}/update-payment-method"),
}
LEFT_OUT_ENDS: Final = ("/translations", "/translations/{}", "/headers")


def sdk_routes() -> set[tuple[str, str]]:
    """The method and path of each call in the SDK's source, parameters as {}."""
    found = set()
    for file in (Path(dodopayments.__file__).parent / "resources").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            path = _path(node.args[0])
            if node.func.attr in CALLS and path is not None:
                found.add((CALLS[node.func.attr], path))
    return found


def _path(node: ast.expr) -> str | None:
    if isinstance(node, ast.Call) and node.args:
        node = node.args[0]
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return re.sub(r"\{[^}]*\}", "{}", node.value) if is_text else None  # type: ignore[attr-defined]


def ours() -> set[tuple[str, str]]:
    return {(method, re.sub(r"\{[^}]*\}", "{}", path)) for method, path in HANDLERS}


def is_left_out(method: str, path: str) -> bool:
    begins = any(path == start or path.startswith(f"{start}/") for start in LEFT_OUT)
    return begins or path.endswith(LEFT_OUT_ENDS) or (method, path) in LEFT_OUT_ALONE


def test_every_route_of_ours_is_one_that_the_sdk_knows() -> None:
    assert not ours() - sdk_routes()


def test_every_route_of_the_sdk_is_there_or_left_out_on_purpose() -> None:
    """A new version of the SDK with more routes makes somebody decide."""
    known = sdk_routes()
    assert len(known) > 100
    lacking = known - ours()
    assert not {one for one in lacking if not is_left_out(*one)}
    assert not {one for one in LEFT_OUT_ALONE if one not in lacking}
