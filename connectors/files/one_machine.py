"""A file that processes of one machine may share, and no two machines: SQLite's write-ahead log is shared memory.

A process that opens the file holds a lock beside it, in which the kernel's boot id stands, so containers of one kernel
are one machine. On a volume that two machines share the second one is refused, instead of damaging the file.
"""

import fcntl
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def claim(path: Path) -> int | None:
    """Hold the file for this machine; return the descriptor to close, None where another machine has it open."""
    lock = os.open(path.with_name(f"{path.name}.machine"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    own = machine().encode()
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, own, 0)
    # Another one may come between the two, and is seen by what is written.
    fcntl.flock(lock, fcntl.LOCK_SH)
    if os.pread(lock, 4096, 0) == own:
        return lock
    os.close(lock)
    return None


def machine() -> str:
    """Return what names this machine while it runs."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else platform.node()
