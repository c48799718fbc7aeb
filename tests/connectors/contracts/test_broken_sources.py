"""The contract fails sources that are broken in the ways sources are: else it proves nothing."""

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.connectors.contracts.source import HANGS_AFTER_S, Source, SourceContract
from tests.connectors.files.test_ndjson import FileContract
from tidegate.connectors.files.lines import LinesRead
from tidegate.connectors.files.ndjson import FilePosition, FileSource
from tidegate.connectors.files.partition import FilePartition


class _Trusting(FilePartition):
    """As the real one, but its position is not checked against the file: so only the contract can tell."""

    def _recall(self, resume: FilePosition) -> None:
        self._resume = None

    def _find(self, resume: FilePosition) -> None:
        self._recall(resume)

    def _is_seamless(self, fd: int) -> bool:
        return True


class _SkipsWhatItReadAhead(_Trusting):
    def snapshot(self) -> FilePosition:
        return super().snapshot()._replace(offset=self._offset + self._rest_bytes)


class _SkipsALineAtABoundary(_Trusting):
    def _cut(self, chunk: bytes) -> bytes:
        block = super()._cut(chunk)
        self._offset += self._rest_bytes
        self._take_rest()
        return block


class _RepeatsTheLastBlock(_Trusting):
    _before = 0

    def _advance(self, block: bytes) -> None:
        self._before = self._offset
        super()._advance(block)

    def snapshot(self) -> FilePosition:
        return super().snapshot()._replace(offset=self._before)


class _LosesAnUnterminatedLine(_Trusting):
    def _finish(self) -> bytes:
        raise StopIteration


class _CountsCharacters(_Trusting):
    _shift = 0

    def _advance(self, block: bytes) -> None:
        super()._advance(block)
        self._shift += len(block) - len(block.decode(errors="ignore"))

    def snapshot(self) -> FilePosition:
        return super().snapshot()._replace(offset=self._offset - self._shift)


class _CountsOneByteForCrLf(_Trusting):
    _shift = 0

    def _advance(self, block: bytes) -> None:
        super()._advance(block)
        self._shift += block.count(b"\r\n")

    def snapshot(self) -> FilePosition:
        return super().snapshot()._replace(offset=self._offset - self._shift)


class _HandsOutHalfLines(_Trusting):
    def _cut(self, chunk: bytes) -> bytes:
        return chunk


class _DropsLongLines(_Trusting):
    def _keep(self, piece: bytes) -> None:
        if self._rest_bytes + len(piece) >= 2 * self._limits.poll_bytes:
            self._offset += self._rest_bytes + len(piece)
            self._take_rest()
        else:
            super()._keep(piece)


class _SharesItsSnapshot(_Trusting):
    _shared: Any = None

    def snapshot(self) -> Any:
        self._shared = self._shared if self._shared is not None else []
        self._shared[:] = super().snapshot()
        return self._shared

    def _advance(self, block: bytes) -> None:
        super()._advance(block)
        if self._shared is not None:
            self.snapshot()


class _EndsWhenNothingIsThere(_Trusting):
    def _read(self, size: int) -> bytes | None:
        if not (chunk := super()._read(size)):
            raise StopIteration
        return chunk


class _Waits(_Trusting):
    def _read(self, size: int) -> bytes | None:
        chunk = super()._read(size)
        if chunk is None:
            threading.Event().wait(HANGS_AFTER_S + 1)
        return chunk


class _Sleeps(_Trusting):
    def _read(self, size: int) -> bytes | None:
        chunk = super()._read(size)
        if chunk is None:
            time.sleep(0.001)
        return chunk


class _DozesOff(_Trusting):
    def next_awake(self) -> Any:
        awake = super().next_awake()
        return awake and awake.replace(year=awake.year + 1)


class _BeginsAnew(_Trusting):
    def _recall(self, resume: FilePosition) -> None:
        super()._recall(resume)
        self._offset = 0


BROKEN = {
    _SkipsWhatItReadAhead: "test_it_resumes_anywhere",
    _SkipsALineAtABoundary: "test_every_payload_comes_once",
    _RepeatsTheLastBlock: "test_it_resumes_anywhere",
    _LosesAnUnterminatedLine: "test_every_payload_comes_once",
    _CountsCharacters: "test_it_resumes_anywhere",
    _CountsOneByteForCrLf: "test_it_resumes_anywhere",
    _HandsOutHalfLines: "test_every_payload_comes_once",
    _DropsLongLines: "test_every_payload_comes_once",
    _SharesItsSnapshot: "test_it_resumes_anywhere",
    _EndsWhenNothingIsThere: "test_no_poll_blocks",
    _Waits: "test_no_poll_blocks",
    _Sleeps: "test_no_poll_blocks",
    _DozesOff: "test_no_poll_blocks",
    _BeginsAnew: "test_it_resumes_anywhere",
}


class _Broken(FileSource):
    def __init__(self, partition: type[FilePartition], path: str, follow: bool, poll_bytes: int) -> None:
        super().__init__(path, follow, poll_bytes)
        self._partition = partition

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> LinesRead:
        resume = FilePosition(*resume_state) if resume_state else None
        return self._partition(for_part, self._following, self._limits, self._clock, resume)


class _Found(BaseException):
    """Ends Hypothesis at once, which would go on to look for a smaller example."""


def fails(partition: type[FilePartition], name: str) -> bool:
    """Whether the contract's test of that name fails for `partition`, with either line end or with none at the end."""
    for newline, ending in ((b"\n", b"\n"), (b"\r\n", b"")):

        class Contract(FileContract):
            def source(self, path: str, follow: bool = False) -> Source:
                return _Broken(partition, path, follow, self.poll_bytes)

            @contextmanager
            def holding(self, payloads: list[bytes]) -> Iterator[Callable[[], Source]]:
                with super().holding(payloads) as opened:
                    try:
                        yield opened
                    except (AssertionError, StopIteration) as error:
                        raise _Found from error

        Contract.newline, Contract.ending = newline, ending
        try:
            getattr(Contract(), name)()
        except (AssertionError, StopIteration, _Found):
            return True
    return False


@pytest.mark.parametrize(
    ("partition", "finds"), BROKEN.items(), ids=[part.__name__.strip("_") for part in BROKEN]
)
def test_the_contract_fails_a_broken_source(partition: type[FilePartition], finds: str) -> None:
    assert fails(partition, finds)


def test_every_test_of_the_contract_finds_something() -> None:
    tests = {name for name, _ in inspect.getmembers(SourceContract) if name.startswith("test_")}
    assert tests == set(BROKEN.values())


@pytest.mark.parametrize("name", sorted(set(BROKEN.values())))
def test_the_contract_passes_the_source_they_are_made_of(name: str) -> None:
    assert not fails(_Trusting, name)
