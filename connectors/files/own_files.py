"""Files that the flow itself writes, by whatever name: they are never its input.

A path is the flow's own where it leads, through symbolic links and `..`, to one of the files and folders that its
settings name, where it is another name (a hard link) of such a file, where the flow's output is redirected to it, or
where a sink of this recovery store has left its mark beside it.
"""

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

# What lies in the data directory beside files that the settings name; users may keep input there too.
DATA_FOLDERS: Final = ("recovery", "recovery.new", "journal", "store", "reconciliation")
DATA_FILES: Final = ("*.db", "*.db-*", "*.db.*", "*.lock", "*.start", "*.start.new")
_OUTPUTS: Final = (1, 2)


class OwnFiles:
    """The files and folders that the flow writes, and what it keeps in `data_dir`; they need not exist yet."""

    def __init__(self, paths: Collection[Path] = (), data_dir: Path | None = None) -> None:
        self._paths = [*paths, *(data_dir / name for name in DATA_FOLDERS if data_dir)]
        self._data_dir = data_dir

    def has(self, path: str) -> bool:
        """Return whether the flow writes the file at `path`, or would if it were there."""
        real = os.path.realpath(path)
        return self._is_named(real) or self._is_marked(real) or self._is_linked(real)

    def _is_named(self, real: str) -> bool:
        for own in map(os.path.realpath, self._paths):
            if real == own or real.startswith(f"{own}/"):
                return True
        folder, name = os.path.split(real)
        return (
            self._data_dir is not None
            and folder == os.path.realpath(self._data_dir)
            and any(fnmatch(name, pattern) for pattern in DATA_FILES)
        )

    def _is_marked(self, real: str) -> bool:
        """Return whether a sink of this recovery store wrote it, perhaps under other settings."""
        if self._data_dir is None:
            return False
        try:
            lineage = (self._data_dir / "recovery" / "lineage").read_bytes()
            return lineage + b"/" in Path(f"{real}.start").read_bytes()
        except OSError:
            return False

    def _is_linked(self, real: str) -> bool:
        try:
            found = os.stat(real)
        except OSError:
            return False
        if not stat.S_ISREG(found.st_mode):
            return False
        return any(os.path.samestat(found, own) for own in self._stats(found.st_nlink > 1))

    def _stats(self, inside: bool) -> Iterator[os.stat_result]:
        """Yield what the flow's files are on disk, those in its folders only where `inside`."""
        for output in _OUTPUTS:
            with suppress(OSError):
                yield os.fstat(output)
        for path in self._paths:
            with suppress(OSError):
                yield os.stat(path)
            for folder, _, names in os.walk(path) if inside else ():
                for name in names:
                    with suppress(OSError):
                        yield os.stat(os.path.join(folder, name))
