import io
import os
import subprocess
import sys

import pytest

from tidegate.connectors.files.stdout import StdoutClosed, StdoutSink


class Out(io.BytesIO):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def write(self, block: object) -> int:
        self.calls.append("write")
        return super().write(block)  # type: ignore[arg-type]

    def flush(self) -> None:
        self.calls.append("flush")


def test_a_batch_is_written_at_once_and_flushed() -> None:
    """An alert is on the terminal when it happens, and not mixed with another worker's."""
    out = Out()
    StdoutSink(out).build("out", 0, 1).write_batch([("a", b"1"), ("b", "é".encode())])
    assert out.getvalue() == "1\né\n".encode()
    assert out.calls == ["write", "flush"]


def test_a_line_holds_no_newline() -> None:
    with pytest.raises(AssertionError, match="holds a newline"):
        StdoutSink(io.BytesIO()).build("out", 0, 1).write_batch([("a", b"1\n2")])


def test_it_writes_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    StdoutSink().build("out", 0, 1).write_batch([("a", b"1")])
    assert capfdbinary.readouterr().out == b"1\n"


def test_a_reader_that_goes_away_is_one_clear_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        part = StdoutSink(out).build("out", 0, 1)
        with pytest.raises(StdoutClosed, match="its reader has gone"):
            part.write_batch([("a", b"1")])


def test_python_has_nothing_to_add_at_its_exit() -> None:
    """No `Exception ignored … BrokenPipeError` under the message that matters."""
    program = (
        "from tidegate.connectors.files.stdout import *\n"
        "part = StdoutSink().build('out', 0, 1)\n"
        "try:\n"
        "    while True: part.write_batch([('a', b'1' * 100_000)])\n"
        "except StdoutClosed as error: raise SystemExit(str(error))\n"
    )
    reader, writer = os.pipe()
    ended = subprocess.Popen(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    os.close(reader)
    _, errors = ended.communicate(timeout=20)
    assert errors == "stdout: its reader has gone; the flow stops\n"
    assert ended.returncode == 1
