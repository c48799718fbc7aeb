"""The dashboard's pages and what they load, as bytes with their headers; read once, when the service starts.

Two pages: `/` is the operator's and is never framed, `/embed` is one customer's, framed by the origins in
TIDEGATE_FRAMES alone. They are the same for everybody and hold no figures: what a page shows it asks of the API with
the reader's key. No address holds a key or a customer's name: those are in the fragment, which browsers send to nobody.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from starlette.types import Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

STATIC: Final = Path(__file__).resolve().parent.parent / "dashboard" / "static"
PAGES: Final = {"/": "index.html", "/embed": "embed.html"}
MEDIA: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles are files of ours. Markup is made by lit-html, which never parses a value, and by nothing else.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; require-trusted-types-for 'script'; trusted-types lit-html; frame-ancestors "
)
FEATURES: Final = b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"


class Page(NamedTuple):
    """A file as it is served. `tag` is its entity tag."""

    body: bytes
    tag: bytes
    headers: Headers


class Pages:
    """All of the dashboard's files by path.

    `frames` are the origins whose pages may embed a customer's page; `auth` is what the service wants of its callers.
    """

    def __init__(self, frames: Sequence[str] = (), auth: str = "keys") -> None:
        self._pages = {path: _page(_html(name, auth), name, path, frames) for path, name in PAGES.items()}
        self._pages |= {path: _page(file.read_bytes(), file.name, path, frames) for path, file in _static()}

    def has(self, path: str) -> bool:
        return path in self._pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request for a path that there is."""
        page, method = self._pages[scope["path"]], scope["method"]
        status, headers, body = 200, [*page.headers, _length(page.body)], page.body
        if method not in ("GET", "HEAD"):
            status, headers, body = 405, [(b"allow", b"GET, HEAD"), _length(b"")], b""
        elif page.tag in dict(scope["headers"]).get(b"if-none-match", b""):
            status, headers, body = 304, page.headers, b""
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", str(len(body)).encode()


def _static() -> Iterator[tuple[str, Path]]:
    for file in sorted(STATIC.rglob("*")):
        if file.suffix in MEDIA and file.name not in PAGES.values():
            yield f"/static/{file.relative_to(STATIC).as_posix()}", file


def _html(name: str, auth: str) -> bytes:
    """Return a page that knows whether it has to ask its reader for a key."""
    return (STATIC / name).read_bytes().replace(b'data-auth="keys"', f'data-auth="{auth}"'.encode())


def _page(body: bytes, name: str, path: str, frames: Sequence[str]) -> Page:
    tag = f'"{sha256(body).hexdigest()[:32]}"'.encode()
    ancestors = " ".join(frames) if path == "/embed" and frames else "'none'"
    headers = [
        (b"content-type", MEDIA[Path(name).suffix].encode()),
        (b"etag", tag),
        # Asked for each time and mostly answered with 304, so that a new release is seen at once.
        (b"cache-control", b"no-cache"),
        (b"content-security-policy", (POLICY + ancestors).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"permissions-policy", FEATURES),
        (b"cross-origin-resource-policy", b"cross-origin" if path == "/embed" else b"same-origin"),
    ]
    if path == "/":
        headers += [(b"x-frame-options", b"DENY"), (b"cross-origin-opener-policy", b"same-origin")]
    return Page(body, tag, headers)
