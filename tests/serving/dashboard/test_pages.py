"""The dashboard's files as they are served: complete, guarded by their headers, and with what was vendored in order."""

import re
import tomllib
from fnmatch import fnmatch
from typing import Any

import pytest
from starlette.types import Message

from tests.support.places import ROOT
from tidegate.serving.http.pages import STATIC, Pages

FRAMER = "https://shop.example"


async def served(path: str, method: str, frames: tuple[str, ...], auth: str, headers: dict[str, str]) -> Any:
    """Status, headers and body of an answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await Pages(frames, auth)(
        {"type": "http", "method": method, "path": path, "headers": given}, receive, send
    )
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, sent[1]["body"]


def get(
    path: str, method: str = "GET", frames: tuple[str, ...] = (), auth: str = "keys", **headers: str
) -> Any:
    # Nothing is awaited but `send` above, so no loop is needed.
    coroutine = served(path, method, frames, auth, headers)
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def test_the_operators_page_is_framed_by_nobody_and_the_customers_by_those_named() -> None:
    for frames in ((), (FRAMER,)):
        _, headers, _ = get("/", frames=frames)
        assert headers["content-security-policy"].endswith("frame-ancestors 'none'")
        assert headers["x-frame-options"] == "DENY"
    assert get("/embed")[1]["content-security-policy"].endswith("frame-ancestors 'none'")
    assert get("/embed", frames=(FRAMER,))[1]["content-security-policy"].endswith(f"frame-ancestors {FRAMER}")


@pytest.mark.parametrize("path", ["/", "/embed"])
@pytest.mark.parametrize("auth", ["keys", "none"])
def test_a_page_knows_whether_it_has_to_ask_for_a_key(path: str, auth: str) -> None:
    assert f'data-auth="{auth}"'.encode() in get(path, auth=auth)[2]


@pytest.mark.parametrize("path", ["/", "/embed", "/static/app.css", "/static/js/operator.js"])
def test_every_file_has_the_policy_and_is_asked_for_by_its_tag(path: str) -> None:
    status, headers, body = get(path)
    assert status == 200 and body
    assert "script-src 'self'; style-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    status, again, nothing = get(path, if_none_match=headers["etag"])
    assert (status, nothing, again["etag"]) == (304, b"", headers["etag"])
    assert get(path, "HEAD")[2] == b""
    assert get(path, "POST")[0] == 405


@pytest.mark.parametrize(
    "path", ["/static/../pages.py", "/static/", "/static", "/static/vendor/README.md", "//", "/index.html"]
)
def test_nothing_else_is_served(path: str) -> None:
    assert not Pages().has(path)


def test_what_a_page_or_module_loads_is_there() -> None:
    """All of it is from the service itself: no address of another host stands in any file of ours."""
    for file in sorted(STATIC.rglob("*")):
        ours = "vendor" not in file.parts
        if file.suffix == ".js":
            text = file.read_text()
            imports = re.findall(r'(?:from|import)\s*"([^"]+)"', text)
            assert all((file.parent / name).resolve().is_file() for name in imports), file
            assert not ours or not re.findall(
                r"innerHTML|insertAdjacentHTML|document\.write|eval\(|unsafeHTML", text
            )
        if file.suffix == ".html":
            loaded = re.findall(r'(?:src|href)="([^"#]+)"', file.read_text())
            assert loaded and all((STATIC.parent / name).is_file() for name in loaded), file
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", file.read_text()), file
        if ours and file.is_file() and file.suffix != ".svg":
            addresses = re.findall(r"https?://[^\s\"')]+", file.read_text())
            assert all(address.startswith("https://html.spec.whatwg.org/") for address in addresses), file


def test_every_file_is_in_the_package_and_what_is_vendored_has_its_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["tidegate.serving.dashboard"]
    for file in STATIC.rglob("*"):
        name = file.relative_to(ROOT / "serving" / "dashboard")
        depth = len(name.parts)
        assert file.is_dir() or any(
            depth == pattern.count("/") + 1 and fnmatch(str(name), pattern) for pattern in patterns
        ), name
    told = (STATIC / "vendor" / "README.md").read_text()
    for folder in (STATIC / "vendor").iterdir():
        if folder.is_dir():
            assert (
                "Permission" in (folder / "LICENSE").read_text()
                or "Redistribution" in (folder / "LICENSE").read_text()
            )
            assert f"`{folder.name}/`" in told
