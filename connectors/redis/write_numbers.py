"""The numbers of a writer's last writes, kept beside the flow's state: what a store acknowledged it must still have.

Without them a flow that died together with its Redis, which came back without its last second, would take what it finds
there for all that it wrote. A file for each worker, in the same folder; a later start reads those of all workers, as
buckets move with the number of them. Nothing is forced to disk: after a power cut the flow writes all of its totals.
"""

import os
from pathlib import Path
from struct import Struct
from typing import Final

from tidegate.connectors.files.private_files import make_private_folder
from tidegate.connectors.redis.key_layout import BUCKETS

_PACKED: Final = Struct(f"<{BUCKETS}q")


class Numbers:
    """The number of the last write to each bucket, in `last`: as kept by those before where they are `known`, else 0.

    Without a `path` they are kept nowhere.
    """

    def __init__(self, path: Path | None, *, known: bool) -> None:
        self.last = [0] * BUCKETS
        self._file: int | None = None
        if path is not None:
            make_private_folder(path.parent)
            found = [file.read_bytes() for file in path.parent.iterdir()] if known else []
            # A file that was just made is empty.
            whole = [_PACKED.unpack(packed) for packed in found if len(packed) == _PACKED.size]
            self.last = [max(numbers) for numbers in zip(self.last, *whole, strict=True)]
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def keep(self) -> None:
        """Sees to it that a later start knows them, even if this process is killed now."""
        if self._file is not None:
            os.pwrite(self._file, _PACKED.pack(*self.last), 0)

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
