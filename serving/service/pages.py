"""The dashboard's files, under `/` and `/dashboard/`: static, without inline scripts, as the policy says.

They are the same for everybody and hold no figures: what a page shows it asks of the API with the reader's key.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.responses import RedirectResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

FOLDER: Final = Path(__file__).resolve().parent.parent / "dashboard"
PREFIX: Final = "/dashboard"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)


class Pages:
    """Serves FOLDER; `frames` are the origins that may show it in a frame. Nothing where there is no such folder."""

    def __init__(self, frames: Sequence[str], folder: Path = FOLDER) -> None:
        self._files = StaticFiles(directory=folder, html=True) if folder.is_dir() else None
        self._headers = {
            "content-security-policy": " ".join((POLICY, *frames)),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "permissions-policy": "camera=(), geolocation=(), microphone=()",
            # Asked for anew each time, by its tag: a new version is there at once.
            "cache-control": "no-cache",
        }

    def has(self, path: str) -> bool:
        return self._files is not None and (path in ("/", PREFIX) or path.startswith(PREFIX + "/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        if scope["path"] in ("/", PREFIX):
            await RedirectResponse(PREFIX + "/")(scope, receive, with_headers)
            return
        assert self._files is not None
        inside = {**scope, "root_path": scope.get("root_path", "") + PREFIX}
        await self._files(inside, receive, with_headers)
