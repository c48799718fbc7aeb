"""All dead letters as one list: rejects of the flow, and usage that was refused or is held back for review."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress

from tidegate.operators.model.dead_letters import DeadLetterError, DeadLetterPlace, HeldLetter
from tidegate.operators.model.errors import TidegateError
from tidegate.settings.settings import Settings


def open_places(settings: Settings) -> list[DeadLetterPlace]:
    """Return the places that this machine has: of the flow's rejects, and of usage."""
    places = (
        settings.dead_letters.open_letters(settings.data_dir),
        settings.billing.open_letters(settings.data_dir),
    )
    return [place for place in places if place is not None]


def find_letters(
    places: Sequence[DeadLetterPlace], ids: Iterable[str]
) -> list[tuple[DeadLetterPlace, list[HeldLetter]]]:
    """Return the letters of these ids, or of their beginnings, each once, by the place that has them.

    Raises:
        DeadLetterError: one is nowhere, or the beginning of an id fits several.
    """
    wanted = list(dict.fromkeys(ids))
    known = [place.find(wanted) for place in places]
    chosen: list[dict[str, HeldLetter]] = [{} for _ in places]
    for id in wanted:
        hits = [(at, found[id]) for at, found in enumerate(known) if id in found]
        exact = [(at, letter) for at, letter in hits if letter.id == id]
        if not hits:
            raise DeadLetterError(
                f"dead letter {id!r}: is neither in the file nor in the outbox; see the list"
            )
        if len(hits) > 1 and not exact:
            both = " and ".join(letter.id for _, letter in hits)
            raise DeadLetterError(f"dead letter {id!r}: fits {both}; give more of it")
        at, letter = (exact or hits)[0]
        chosen[at][letter.id] = letter
    return [(place, list(letters.values())) for place, letters in zip(places, chosen, strict=True) if letters]


def count_by_reason(places: Sequence[DeadLetterPlace]) -> dict[str, int] | None:
    """Return how many letters are held for each reason; None where there is no place. One that is away has none."""
    counts: Counter[str] = Counter()
    for place in places:
        with suppress(TidegateError, OSError):
            counts.update(place.count())
    return dict(counts) if places else None
