"""Events judged as the flow will judge them: by its own decoder, under the same catalog."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import repeat
from threading import Lock
from typing import Final, NamedTuple

import numpy as np

from tidegate.operators.columns.quantity import join_limbs
from tidegate.operators.events.chunk import Chunk
from tidegate.operators.events.decode import Decoder
from tidegate.operators.events.unmetered import Cause
from tidegate.operators.model.aggregates import ADDITIVE
from tidegate.operators.model.catalog import Catalog, VersionedCatalog
from tidegate.operators.model.ports import Payloads
from tidegate.settings.serving import ServingSettings

# A decoder remembers each customer that it met; then it begins anew.
CUSTOMERS_MAX: Final = 100_000


class Verdict(NamedTuple):
    """`reason` and `detail` are empty where the event is accepted.

    Then `metered_by` has the meters that will read it under the catalog, and `causes` why it, or one of its meters,
    will not be; `identity` is the event's (operators/events/keys.py), `at` its time (µs), and `quantities` what
    meters that add up read (×10²⁴).
    """

    reason: str = ""
    detail: str = ""
    metered_by: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    identity: bytes = b""
    at: int = 0
    quantities: Mapping[str, int] = {}


OTHERS: Final = tuple(letter.to_bytes() for letter in b'["-0123456789tfn')
"""How JSON begins that is no object."""


class Judge:
    """Says of each payload whether the flow would reject it. One thread at a time, the others wait.

    Stricter than the flow in two things: a time is needed, as without one a repeat could not be told from another
    event, and may not lie in the future of this machine's clock.
    """

    def __init__(self, settings: ServingSettings, clock: Callable[[], int]) -> None:
        self._settings, self._clock = settings, clock
        self._number = -1
        self._lock = Lock()
        self._decoder: Decoder | None = None

    def verdicts(self, payloads: Sequence[bytes], version: VersionedCatalog) -> list[Verdict]:
        """One for each payload, under this catalog; no payload holds a line break."""
        with self._lock:
            catalog = version.catalog
            decoder = self._decoder_of(version)
            now = self._clock()
            chunks = _decode(decoder, b"\n".join(payloads), now)
            if all(map(_is_object, payloads)) and not any(chunk.rejects for chunk in chunks):
                return [verdict for chunk in chunks for verdict in _accepted(chunk, catalog)]
            return [self._verdict(decoder, payload, now, catalog) for payload in payloads]

    def _verdict(self, decoder: Decoder, payload: bytes, now: int, catalog: Catalog) -> Verdict:
        if not _is_object(payload):
            # A list would be events of its own to the flow; here it stands for one.
            detail = f"needs an object, got {_shown(payload)}"
            return Verdict("not_an_object" if payload.startswith(OTHERS) else "not_json", detail)
        (chunk,) = _decode(decoder, payload, now)
        if chunk.rejects:
            return Verdict(chunk.rejects[0].reason, chunk.rejects[0].detail)
        return _accepted(chunk, catalog)[0]

    def _decoder_of(self, version: VersionedCatalog) -> Decoder:
        decoder = self._decoder
        if decoder is None or version.number != self._number or len(decoder.customers.number) > CUSTOMERS_MAX:
            decoder = self._decoder = Decoder(
                version.catalog,
                shards=1,
                clock="wall",
                future=self._settings.future,
                payload_bytes_max=self._settings.payload_bytes_max,
                number=version.number,
            )
            self._number = version.number
        return decoder


def _decode(decoder: Decoder, block: bytes, now: int) -> list[Chunk]:
    """Return the one chunk of these payloads, or none where there are none."""
    return [chunk for _, chunk in decoder.decode(Payloads(block, now, None, "http"))]


def _accepted(chunk: Chunk, catalog: Catalog) -> list[Verdict]:
    """Return a verdict for each event of a chunk, in order of arrival."""
    read: list[list[int]] = [[] for _ in range(len(chunk))]
    for event, meter in zip(chunk.readings.event.tolist(), chunk.readings.meter.tolist(), strict=True):
        read[event].append(meter)
    causes: dict[int, tuple[Cause, ...]] = {}
    for event, cause in zip(chunk.missed.event.tolist(), chunk.missed.cause.tolist(), strict=True):
        causes[event] = (*causes.get(event, ()), chunk.missed.causes[cause])
    quantities = _quantities(chunk, catalog)
    names = cache(lambda places: tuple(catalog.meters[place].name for place in places))
    return [
        Verdict(
            metered_by=names(tuple(places)),
            causes=causes.get(event, ()),
            identity=_word(chunk.digest_lo[event]) + _word(chunk.digest_hi[event]),
            at=int(chunk.at[event]),
            quantities=quantities.get(event, {}),
        )
        for event, places in enumerate(read)
    ]


def _shown(payload: bytes) -> str:
    """Return the beginning of a payload for a message, if it is text."""
    try:
        payload.decode()
    except UnicodeDecodeError:
        return f"{len(payload)} bytes that are not UTF-8"
    return repr(payload[:40].decode(errors="ignore"))


def _quantities(chunk: Chunk, catalog: Catalog) -> dict[int, dict[str, int]]:
    """Return what each event adds to meters that add up, by its place in the chunk.

    Not to `unique` ones, as only the flow knows whether a value is new.
    """
    readings = chunk.readings
    mid, lo = (limb.tolist() if limb is not None else repeat(0) for limb in (readings.mid, readings.lo))
    found: dict[int, dict[str, int]] = {}
    for event, place, *limbs in zip(
        readings.event.tolist(), readings.meter.tolist(), readings.hi.tolist(), mid, lo, strict=False
    ):
        meter = catalog.meters[place]
        if meter.kind in ADDITIVE:
            found.setdefault(event, {})[meter.name] = join_limbs(*limbs)
    return found


def _word(word: np.uint64) -> bytes:
    return int(word).to_bytes(8, "little")


def _is_object(payload: bytes) -> bool:
    return payload[:1] == b"{"
