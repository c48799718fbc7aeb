"""What every place of dead letters promises, as tests to inherit: listed, found, retried, dropped and counted.

A subclass says in `place` what the place is and in `receive` how letters come to it.
"""

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import pytest

from tidegate.operators.model.dead_letters import DeadLetterError, DeadLetterPlace, HeldLetter

EVENT = b'{"event_id":"e1","customer_id":"acme","event_name":"call","timestamp":"2026-11-22T10:00:00Z","metadata":{}}'


class Actor(TypedDict):
    """Who settles a dead letter, and why."""

    by: str
    why: str


WHO: Actor = {"by": "ann", "why": "asked"}


class DeadLetterContract(ABC):
    held: ClassVar[str]
    """The state of a letter that is not dealt with."""

    @abstractmethod
    def place(self, folder: Path) -> DeadLetterPlace:
        """The place in this folder, opened as a process of its own would."""

    @abstractmethod
    def receive(self, folder: Path, *letters: tuple[str, str]) -> None:
        """Letters come: an id and a reason of each, whose payload is EVENT."""

    def given(self, folder: Path) -> DeadLetterPlace:
        """A place with three letters."""
        self.receive(folder, ("one", "late"), ("two", "odd"), ("three", "late"))
        return self.place(folder)

    def sender(self, place: DeadLetterPlace, sent: list[str]) -> dict[str, Any]:
        """What a retry needs beside ids: where letters go."""
        if place.sends_itself:
            return {}
        return {"send": lambda letters: sent.extend(letter.id for letter in letters)}

    def test_a_place_without_letters_is_empty(self, tmp_path: Path) -> None:
        """It is not made by looking."""
        place = self.place(tmp_path)
        assert ids(place.letters(every=True)) == [] and place.count() == {} and place.find(["x"]) == {}
        assert place.drop(["x"], **WHO) == place.retry(["x"], **WHO) == []
        assert list(tmp_path.iterdir()) == []

    def test_letters_are_whole_and_the_oldest_is_first(self, tmp_path: Path) -> None:
        place = self.given(tmp_path)
        letters = list(place.letters())
        assert ids(letters) == ["one", "two", "three"]
        first = letters[0]
        assert (first.place, first.customer, first.reason, first.detail) == (
            place.name,
            "acme",
            "late",
            "why",
        )
        assert (first.payload, first.state, first.act) == (EVENT, self.held, None)
        assert first.at == "2026-11-22T10:00:00.000000Z" and first.received_at.endswith("Z")
        assert ids(place.letters("late")) == ["one", "three"]
        assert place.count() == {"late": 2, "odd": 1}

    def test_the_beginning_of_an_id_will_do_where_it_is_of_one(self, tmp_path: Path) -> None:
        self.receive(tmp_path, *((id, "late") for id in ("u10", "u12", "u1", "u20", "u21")))
        place = self.place(tmp_path)
        assert {id: one.id for id, one in place.find(["u1", "u20", "no"]).items()} == {
            "u1": "u1",
            "u20": "u20",
        }
        assert place.find(["u10"])["u10"].id == "u10"
        with pytest.raises(DeadLetterError, match="'u2': fits u20 and u21; give more of it"):
            place.find(["u2"])

    @pytest.mark.parametrize("again", [False, True], ids=["at once", "by another process"])
    def test_what_is_dropped_is_counted_no_more_and_still_known(self, tmp_path: Path, again: bool) -> None:
        place = self.given(tmp_path)
        assert place.count() == {"late": 2, "odd": 1}
        assert place.drop(["two", "one", "nowhere"], **WHO) == ["two", "one"]
        if again:
            place = self.place(tmp_path)
        assert ids(place.letters()) == ["three"] and place.count() == {"late": 1}
        assert sorted(ids(place.letters(every=True))) == ["one", "three", "two"]
        dropped = place.find(["two"])["two"]
        assert dropped.state == "dropped" and dropped.act is not None
        assert (dropped.act.by, dropped.act.why) == ("ann", "asked") and dropped.act.at.endswith("Z")

    def test_what_is_retried_is_sent_and_then_known_as_such(self, tmp_path: Path) -> None:
        place, sent = self.given(tmp_path), list[str]()
        assert place.retry(["three", "one"], **WHO, **self.sender(place, sent)) == ["three", "one"]
        assert sent == ([] if place.sends_itself else ["three", "one"])
        assert ids(place.letters()) == ["two"] and place.count() == {"odd": 1}
        assert place.find(["one"])["one"].state == "retried"

    def test_a_process_killed_in_a_retry_leaves_the_letter_to_be_retried(self, tmp_path: Path) -> None:
        """Between the act and its record: what was sent twice is counted once, what is unseen is lost."""
        place = self.given(tmp_path)
        if (child := os.fork()) == 0:
            self.retry_and_die(place)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        place, sent = self.place(tmp_path), list[str]()
        assert ids(place.letters()) == ["one", "two", "three"]
        assert place.retry(["one"], **WHO, **self.sender(place, sent)) == ["one"]
        assert ids(place.letters()) == ["two", "three"]

    def test_a_process_killed_in_a_drop_gives_up_all_or_what_it_wrote_down(self, tmp_path: Path) -> None:
        place = self.given(tmp_path)
        if (child := os.fork()) == 0:
            place.drop(Dying(["one", "two"]), **WHO)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        place = self.place(tmp_path)
        assert ids(place.letters()) == ["one", "two", "three"]
        assert place.drop(["one", "two"], **WHO) == ["one", "two"]

    def retry_and_die(self, place: DeadLetterPlace) -> None:
        """Retry the first letter, killed after it was sent and before that is recorded."""
        if place.sends_itself:
            place.retry(Dying(["one", "two"]), **WHO)
        else:
            place.retry(["one"], **WHO, send=lambda _: os.kill(os.getpid(), signal.SIGKILL))

    def test_letters_that_come_later_are_counted(self, tmp_path: Path) -> None:
        place = self.given(tmp_path)
        assert place.count() == {"late": 2, "odd": 1}
        place.drop(["one"], **WHO)
        self.receive(tmp_path, ("four", "odd"))
        assert place.count() == {"late": 1, "odd": 2}
        assert ids(place.letters()) == ["two", "three", "four"]


class Dying(list[str]):
    """Ids of which the first is taken, and then the process is killed."""

    def __iter__(self) -> Iterator[str]:
        yield self[0]
        os.kill(os.getpid(), signal.SIGKILL)


def ids(letters: Iterator[HeldLetter] | Sequence[HeldLetter]) -> list[str]:
    return [letter.id for letter in letters]
