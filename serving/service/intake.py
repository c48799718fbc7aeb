"""Events judged as the flow will judge them: by its own decoder, under the same catalog."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final, NamedTuple

from operators.catalog import Catalog
from operators.chunk import Reject
from operators.decode import Decoder
from operators.ports import Payloads
from settings.serving import ServingSettings

# A decoder remembers each customer that it met; then it begins anew.
CUSTOMERS_MAX: Final = 100_000


class Verdict(NamedTuple):
    """`reason` and `detail` are empty where the event may pass."""

    reason: str = ""
    detail: str = ""


PASSES: Final = Verdict()
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

    def verdicts(self, payloads: Sequence[bytes], number: int, catalog: Catalog) -> list[Verdict]:
        """One for each payload, under this catalog; no payload holds a line break."""
        with self._lock:
            decoder = self._decoder_of(number, catalog)
            now = self._clock()
            if not self._rejects(decoder, b"\n".join(payloads), now) and all(map(_is_object, payloads)):
                return [PASSES] * len(payloads)
            return [self._verdict(decoder, payload, now) for payload in payloads]

    def _verdict(self, decoder: Decoder, payload: bytes, now: int) -> Verdict:
        if not _is_object(payload):
            # A list would be events of its own to the flow; here it stands for one.
            detail = f"needs an object, got {payload[:40].decode(errors='replace')!r}"
            return Verdict("not_an_object" if payload.startswith(OTHERS) else "not_json", detail)
        rejects = self._rejects(decoder, payload, now)
        return Verdict(rejects[0].reason, rejects[0].detail) if rejects else PASSES

    def _rejects(self, decoder: Decoder, block: bytes, now: int) -> list[Reject]:
        chunks = decoder.decode(Payloads(block, now, None, "http"))
        return [reject for _, chunk in chunks for reject in chunk.rejects]

    def _decoder_of(self, number: int, catalog: Catalog) -> Decoder:
        decoder = self._decoder
        if decoder is None or number != self._number or len(decoder.customers.number) > CUSTOMERS_MAX:
            decoder = self._decoder = Decoder(
                catalog,
                shards=1,
                clock="wall",
                future=self._settings.future,
                payload_bytes_max=self._settings.payload_bytes_max,
                number=number,
            )
            self._number = number
        return decoder


def _is_object(payload: bytes) -> bool:
    return payload[:1] == b"{"
