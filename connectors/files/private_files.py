"""What is created for this user alone: files of mode 0600 in folders of mode 0700, whatever the umask.

What is there already keeps the mode that somebody gave it.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

FOLDER: Final = 0o700
FILE: Final = 0o600
_OTHERS: Final = 0o077


def make_private_folder(path: Path) -> None:
    """Create a folder, and those above it, where they are missing."""
    if path.is_dir():
        return
    if not path.parent.exists():
        make_private_folder(path.parent)
    path.mkdir(FOLDER, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Create an empty file where there is none, for a library that opens it by name.

    SQLite gives its -wal and -shm the mode of the database. A file that exists is not opened: to close another
    descriptor of a SQLite file drops the locks of this process.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE))


def keep_private() -> None:
    """Have all that this process creates be private; for programs, as it is the process's umask."""
    os.umask(os.umask(_OTHERS) | _OTHERS)
