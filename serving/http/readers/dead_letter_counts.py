"""Dead letters counted by reason, as far as this machine has their file."""

from collections import Counter
from pathlib import Path
from typing import Final

import msgspec

from tidegate.settings.addresses.sinks import DeadLetterFile
from tidegate.settings.serving import ServingSettings

READ_MAX: Final = 4 << 20


class _Letter(msgspec.Struct):
    reason: str


_READ: Final = msgspec.json.Decoder(_Letter).decode


class Letters:
    """Follows the file, at most READ_MAX bytes a look; of a file that is longer at first it counts the end."""

    def __init__(self, settings: ServingSettings) -> None:
        letters = settings.dead_letters
        self._path = Path(letters.path) if isinstance(letters, DeadLetterFile) else None
        self._reasons: Counter[str] = Counter()
        self._offset: int | None = None

    def counts(self) -> dict[str, int] | None:
        """How many there are of each reason; None where they go elsewhere."""
        if self._path is None:
            return None
        try:
            self._reasons.update(_reason(line) for line in self._lines(self._path))
        except OSError:
            # Made with the first dead letter.
            return dict(self._reasons)
        return dict(self._reasons)

    def _lines(self, path: Path) -> list[bytes]:
        """Whole lines that are new."""
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if self._offset is None or size < self._offset:
                # The flow cuts its file back when it resumes, and writes what was there again.
                self._reasons.clear()
                self._offset = max(size - READ_MAX, 0)
            file.seek(self._offset)
            whole, end, _ = file.read(READ_MAX).rpartition(b"\n")
        self._offset += len(whole) + len(end)
        return whole.split(b"\n") if end else []


def _reason(line: bytes) -> str:
    try:
        return _READ(line).reason
    except msgspec.DecodeError:
        # The file's end may begin within a line.
        return "other"
