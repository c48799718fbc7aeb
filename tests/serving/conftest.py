import sys

import pytest

from tests.serving.cli.run_tidegate import Outcome, Run
from tidegate.serving.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """`tidegate` with these arguments, in this process."""

    def tidegate(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tidegate", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        said = end.value.code
        out, err = (stream.decode() for stream in capfdbinary.readouterr())
        if isinstance(said, str):
            # As the interpreter does with what is given to sys.exit.
            return Outcome(1, out, f"{err}{said}\n")
        return Outcome(int(said or 0), out, err)

    return tidegate
