"""Dead letters in a file: the contract, and what is particular to a file that the flow writes."""

import json
from pathlib import Path

import pytest

from tests.connectors.contracts.dead_letters import EVENT, WHO, DeadLetterContract, ids
from tidegate.connectors.files.dead_letters import FileDeadLetters
from tidegate.operators.model.dead_letters import DeadLetterError


class TestFileDeadLetters(DeadLetterContract):
    held = "open"

    def place(self, folder: Path) -> FileDeadLetters:
        return FileDeadLetters(folder / "dead.ndjson")

    def receive(self, folder: Path, *letters: tuple[str, str]) -> None:
        lines = [
            {
                "id": id,
                "reason": reason,
                "detail": "why",
                "received_at": "2026-11-22T10:00:00.000000Z",
                "payload": EVENT.decode(),
            }
            for id, reason in letters
        ]
        with (folder / "dead.ndjson").open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def test_an_event_cannot_go_out_by_itself(self, tmp_path: Path) -> None:
        place = self.given(tmp_path)
        with pytest.raises(DeadLetterError, match="--to"):
            place.retry(["one"], **WHO)
        assert ids(place.letters()) == ["one", "two", "three"]

    def test_a_file_that_was_cut_back_is_counted_from_its_start(self, tmp_path: Path) -> None:
        """As the flow does on a resume, which then writes again what came after its snapshot."""
        place = self.given(tmp_path)
        place.count()
        path = tmp_path / "dead.ndjson"
        path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n")
        assert place.count() == {"late": 1}

    def test_the_letters_file_is_never_changed(self, tmp_path: Path) -> None:
        place = self.given(tmp_path)
        before = (tmp_path / "dead.ndjson").read_bytes()
        place.drop(["one"], **WHO)
        place.retry(["two"], **WHO, send=lambda _: None)
        assert (tmp_path / "dead.ndjson").read_bytes() == before
