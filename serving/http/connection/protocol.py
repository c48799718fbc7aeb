"""HTTP/1.1 on one connection: uvicorn's protocol, within limits of bytes, headers and time.

What is refused here has no route yet, so it is answered here, with a problem of status 400, 408, 414 or 431. An answer
always reaches its reader: while the client is still sending, its bytes are read and thrown away for a while before the
connection is closed, as a close with unread bytes would take the answer back (RFC 9112 9.6).

Source: https://www.rfc-editor.org/rfc/rfc9112, 6.1 to 6.3 about requests of two lengths, 9.6 about closing
"""

import asyncio
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from tidegate.serving.http.connection.connections import FOREVER, Address, Connections
from tidegate.serving.http.problems import MEDIA, Problem

HEAD_BYTES_MAX: Final = 32 * 1024
URL_BYTES_MAX: Final = 16 * 1024
HEADERS_MAX: Final = 100
PIPELINED_MAX: Final = 32
HEAD_S: Final = 10.0
"""From the connection, or a request's first byte, to the end of its head."""
BODY_S: Final = 40.0
"""From there to the body's end. The application gives up before, with a better answer (requests.py)."""
IDLE_S: Final = 15.0
LINGER_S: Final = 10.0
SPARE_BYTES: Final = 1 << 20

Transport = asyncio.Transport


class _Refusal(Exception):
    """Ends the parsing of a request that cannot be taken."""

    def __init__(self, status: int, why: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.why, self.detail = status, why, detail


class _Polite:
    """The transport of a request that has a body: closed when the client can have read the answer."""

    def __init__(self, protocol: "GuardedProtocol") -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.close_politely


class GuardedProtocol(HttpToolsProtocol):
    """One connection of a table of `connections`, which cuts it off by its `deadline`."""

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._table = connections
        self._address: Address | None = None
        self._waits_in: dict[Any, None] = {}
        self.deadline, self.stalled_since, self.closing_since = FOREVER, FOREVER, FOREVER
        # Of the head that is being read: its bytes, and of those that no callback has seen yet.
        self._is_head, self._head_bytes, self._unseen, self._headers = True, 0, 0, 0
        self._hosts, self._coding, self._has_body = 0, b"", False
        self._is_whole, self._is_tail = True, False
        # Nothing is read any more; what still comes is thrown away, of a head only so many bytes.
        self._is_deaf, self._spare = False, FOREVER

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = self._table.admit(self, self.client[0] if self.client else "")
        if address is None:
            self._is_deaf = True
            self._write_problem(503, "unavailable", "there are too many connections; try again in a while")
            transport.close()
            return
        self._address, self._waits_in = address, address.fresh
        self.deadline = self._table.now + HEAD_S

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._address is not None:
            self._table.release(self, self._address)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._spare -= len(data)
            if self._spare < 0:
                self.transport.abort()
            else:
                self._table.discard(self, len(data))
            return
        self._unset_keepalive_if_required()
        was_inside = self._is_head or self._is_tail
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, _Refusal) else _malformed(error))
        except httptools.HttpParserError as error:
            self._refuse(_malformed(error))
        except httptools.HttpParserUpgrade:
            # Nothing is spoken but HTTP/1.1, and what follows is not to be taken for a request.
            self._is_deaf = True
            self.cycle.keep_alive = False
        else:
            if was_inside and (self._is_head or self._is_tail):
                self._count_unseen(len(data))

    def _count_unseen(self, size: int) -> None:
        """Count bytes of a head or trailer that may be one header without an end, which no callback sees."""
        self._unseen += size
        if self._unseen > HEAD_BYTES_MAX:
            self._refuse(_too_large_head())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = self._headers = self._hosts = 0
        self._coding, self._has_body, self._is_whole = b"", False, False
        self.deadline = self._table.now + HEAD_S

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > URL_BYTES_MAX:
            raise _Refusal(414, "url", f"the address needs to have at most {URL_BYTES_MAX} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._headers > HEADERS_MAX or self._head_bytes > HEAD_BYTES_MAX:
            raise _too_large_head()
        if not self._is_head:
            # A trailer: nothing that was decided by the head may be changed by it.
            return
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name == b"content-length":
            self._has_body = value != b"0"
        elif name == b"transfer-encoding":
            self._coding, self._has_body = value, True
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._check_head()
        if len(self.pipeline) >= PIPELINED_MAX:
            raise _Refusal(429, "pipelined", f"needs at most {PIPELINED_MAX} requests ahead of their answers")
        self._is_head, self._unseen = False, 0
        self._waits_in.pop(self, None)
        self.deadline = self._table.now + BODY_S if self._has_body else FOREVER
        super().on_headers_complete()
        if self._has_body:
            self.cycle.transport = _Polite(self)  # type: ignore[assignment]

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise _bad("needs HTTP/1.1")
        if self._hosts > 1 or (not self._hosts and version == "1.1"):
            raise _bad("needs one host")
        if self._coding and (version == "1.0" or self._coding.strip().lower() != b"chunked"):
            raise _bad("transfer-encoding: needs to be chunked, of HTTP/1.1")

    def on_chunk_header(self) -> None:
        # The last chunk has no bytes, and what follows it are trailers.
        self._is_tail = True

    def on_body(self, body: bytes) -> None:
        self._is_tail, self._unseen = False, 0
        if self.cycle.response_complete:
            self._table.discard(self, len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_whole, self._is_head, self._is_tail, self._unseen = True, True, False, 0
        if self.cycle.response_complete:
            self._wait()
        else:
            self.deadline = FOREVER
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._is_deaf and not self.pipeline:
            self.server_state.total_requests += 1
            self.flow.resume_reading()
            return
        super().on_response_complete()
        if self.pipeline or not self.cycle.response_complete or self.transport.is_closing():
            return
        if self._is_whole:
            self._wait()
        else:
            # The rest of a body that nobody wants.
            self.deadline = self._table.now + LINGER_S

    def _wait(self) -> None:
        """Be idle, until the next request or for a while."""
        self.deadline = self._table.now + IDLE_S
        if self._address is not None:
            self._waits_in = self._address.idle
            self._waits_in[self] = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_since = self._table.now

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_since = FOREVER

    def is_closing(self) -> bool:
        return self.transport.is_closing()

    def abort(self) -> None:
        self.transport.abort()

    def pause(self) -> None:
        self.flow.pause_reading()

    def resume(self) -> None:
        self.flow.resume_reading()

    def expire(self) -> None:
        """End what has taken too long: with an answer where a request had begun."""
        self._table.note("slow")
        if self._is_deaf or self._is_whole or not self._is_head:
            self.transport.close()
        else:
            self._refuse(_Refusal(408, "slow", f"the head did not come within {HEAD_S:.0f} s"))

    def close_politely(self) -> None:
        """Close when the client has had time to read what was written; what it still sends is thrown away."""
        if self._is_whole and not self._is_deaf:
            self.transport.close()
            return
        self._is_deaf = True
        self.deadline = self._table.now + LINGER_S
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer a request that cannot be taken, after those before it, and read nothing more."""
        self._table.note(refusal.why)
        self._is_deaf = True
        self._spare = SPARE_BYTES if self._is_head or self._is_tail else FOREVER
        self.deadline = self._table.now + LINGER_S
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            if self._is_head:
                self._answer(refusal)
            else:
                # It has its answer; another would be taken for that of the next request.
                self.close_politely()
        elif self._is_head:
            # Others are being answered; the last of them says that the connection ends with it.
            cycle.keep_alive = False
            cycle.transport = _Polite(self)  # type: ignore[assignment]
        elif cycle.response_started or self.pipeline:
            self.transport.close()
        else:
            self._answer(refusal)
            self._abandon(cycle)

    def _abandon(self, cycle: RequestResponseCycle) -> None:
        cycle.disconnected = True
        cycle.message_event.set()

    def _answer(self, refusal: _Refusal) -> None:
        self._write_problem(refusal.status, refusal.why, refusal.detail)
        self.close_politely()

    def _write_problem(self, status: int, kind: str, detail: str) -> None:
        body = Problem(status, kind, detail).body()
        head = b"content-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (
            MEDIA.encode(),
            len(body),
        )
        self.transport.write(STATUS_LINE[status] + head + body)


def _malformed(error: Exception) -> _Refusal:
    return _bad(f"needs to be HTTP/1.1 ({str(error)[:100]})")


def _bad(detail: str) -> _Refusal:
    return _Refusal(400, "malformed", f"the request {detail}")


def _too_large_head() -> _Refusal:
    return _Refusal(
        431, "head", f"the head needs to have at most {HEADERS_MAX} headers and {HEAD_BYTES_MAX} bytes"
    )
