"""Bodies as they are sent compressed: `Content-Encoding: gzip` or `zstd`, within the same limits as any body.

Source: RFC 9110 8.4 and 12.5.3, RFC 1952 (a gzip file is a series of members), RFC 8878 and RFC 9659 (zstd's window)
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Final

from tidegate.serving.http.problems import Problem

ACCEPTED: Final = "gzip, zstd"
# An empty member has twenty bytes: a request of megabytes would hold more of them than it is worth.
PARTS_MAX: Final = 100
WINDOW_MAX: Final = 8 << 20
GZIP: Final = 16 + zlib.MAX_WBITS


def encoding_of(headers: Mapping[str, str]) -> str:
    """Return `gzip`, `zstd` or an empty text; a Problem of status 415 for any other, or several."""
    given = headers.get("content-encoding", "").strip().lower()
    if given in ("", "identity"):
        return ""
    if given in ("gzip", "x-gzip", "zstd"):
        return given.removeprefix("x-")
    raise Problem(
        415,
        "encoding",
        f"content-encoding: needs one of {ACCEPTED}, or none, got {given[:40]!r}",
        headers={"accept-encoding": ACCEPTED},
    )


def decompress(encoding: str, body: bytes, limit: int) -> bytes:
    """Return what was compressed; a Problem where it is longer than `limit`, incomplete or something else."""
    unpack: Callable[[bytes, int], bytes | None] = _gunzip if encoding == "gzip" else _unzstd
    whole = unpack(body, limit)
    if whole is None:
        raise Problem(400, "malformed", f"the body needs to be {encoding}, whole, as content-encoding says")
    if len(whole) > limit:
        raise Problem(
            413,
            "too-large",
            f"the body needs to have at most {limit} bytes uncompressed; send less at a time",
        )
    return whole


def _gunzip(body: bytes, limit: int) -> bytes | None:
    """All members, None where one is not whole; stops once there is more than `limit`."""
    whole, rest = b"", body
    for _ in range(PARTS_MAX):
        member = zlib.decompressobj(GZIP)
        try:
            whole += member.decompress(rest, limit + 1 - len(whole))
        except zlib.error:
            return None
        if len(whole) > limit:
            return whole
        if not member.eof:
            return None
        rest = member.unused_data
        if not rest:
            return whole
    raise _too_many("gzip members")


def _unzstd(body: bytes, limit: int) -> bytes | None:
    """All frames, None where one is not whole; stops once there is more than `limit`."""
    import zstandard

    frames = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
    try:
        with frames.stream_reader(body, read_across_frames=True) as reader:
            whole: bytes = reader.read(limit + 1)
        # The reader takes a frame that is cut off for the end; as the size is known now, each can be read to its own.
        rest: bytes = body if len(whole) <= limit else b""
        for _ in range(PARTS_MAX):
            frame = frames.decompressobj()
            frame.decompress(rest)
            if rest and not frame.eof:
                return None
            rest = frame.unused_data
            if not rest:
                return whole
    except zstandard.ZstdError:
        return None
    raise _too_many("zstd frames")


def _too_many(parts: str) -> Problem:
    return Problem(413, "too-large", f"the body needs at most {PARTS_MAX} {parts}; send fewer at a time")
