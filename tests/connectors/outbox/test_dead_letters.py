"""Usage that is held back as dead letters: the contract, and what is particular to the outbox."""

from contextlib import closing
from pathlib import Path

from tests.connectors.contracts.dead_letters import EVENT, WHO, DeadLetterContract, ids
from tidegate.connectors.outbox.dead_letters import OutboxDeadLetters
from tidegate.connectors.outbox.outbox import Outbox
from tidegate.connectors.outbox.reader import OutboxReader
from tidegate.connectors.outbox.schema import State
from tidegate.operators.model.records import Accepted

AT = 1_795_341_600_000_000


class TestRefused(DeadLetterContract):
    held = "refused"
    state = State.refused

    def place(self, folder: Path) -> OutboxDeadLetters:
        return OutboxDeadLetters(folder / "outbox.db")

    def receive(self, folder: Path, *letters: tuple[str, str]) -> None:
        with closing(Outbox(folder / "outbox.db", clock=lambda: AT + 1)) as outbox:
            for id, reason in letters:
                outbox.add([Accepted(id, "acme", AT, "on_time", EVENT)])
                outbox.keep_back(
                    [row for row in outbox.oldest(100) if row.id == id], self.state, reason, "why"
                )

    def test_what_is_retried_waits_to_be_sent(self, tmp_path: Path) -> None:
        place = self.given(tmp_path)
        place.retry(["one"], **WHO)
        with closing(OutboxReader(tmp_path / "outbox.db")) as reader:
            assert reader.find(["one"])["one"].state == State.waiting
            assert reader.read_statistics().counts["retry_by_hand"] == 1

    def test_what_is_refused_again_is_held_again(self, tmp_path: Path) -> None:
        place = self.given(tmp_path)
        place.retry(["one"], **WHO)
        with closing(Outbox(tmp_path / "outbox.db", clock=lambda: AT + 1)) as outbox:
            outbox.keep_back(outbox.oldest(1), self.state, "odd", "again")
        assert ids(place.letters()) == ids(place.letters(every=True)) == ["one", "two", "three"]
        assert place.find(["one"])["one"].state == self.held


class TestHeldBack(TestRefused):
    held = "parked"
    state = State.parked
