"""Lock files: who holds one shows that it runs; the file itself stays."""

import fcntl
from pathlib import Path


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock of this file, which is made where there is none."""
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
