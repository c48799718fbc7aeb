"""HTTP as bytes on a socket, for what no client library would send."""

import socket
from contextlib import suppress
from urllib.parse import urlsplit

WAIT_S = 20.0


class Raw:
    """One connection to a service."""

    def __init__(self, url: str, receive_buffer: int | None = None) -> None:
        place = urlsplit(url)
        assert place.hostname is not None and place.port is not None
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(WAIT_S)
        self.socket.connect((place.hostname, place.port))

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send all of it; False where the service has closed the connection meanwhile."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def head(self) -> bytes:
        """Return what has come when a head is whole, or all of it if the connection ends before."""
        found = b""
        while b"\r\n\r\n" not in found and (piece := self.socket.recv(65536)):
            found += piece
        return found

    def rest(self) -> bytes:
        """Return all that comes until the service closes the connection."""
        found = b""
        with suppress(ConnectionResetError):
            while piece := self.socket.recv(65536):
                found += piece
        return found


def request(path: str = "/healthz", *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    """A request with a host and these headers."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join((*lines, "", "")).encode() + body


def status(answer: bytes) -> int:
    """The status of the first answer, 0 where there is none."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
