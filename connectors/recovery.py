"""Recovery on by default: the folder that Bytewax keeps its snapshots in, made and handed to `bytewax.run`.

`python -m bytewax.run` takes recovery from its command line or from BYTEWAX_… variables, and reads them before it
imports the flow. So a flow that finds itself started without them makes the folder and starts its own command over,
in the same process, with the variables set.
Source: https://docs.bytewax.io/stable/guide/concepts/recovery.html
"""

import fcntl
import os
import sys
import uuid
from datetime import timedelta
from pathlib import Path

from bytewax.recovery import init_db_dir

_VARIABLE = "BYTEWAX_RECOVERY_DIRECTORY"


class RecoveryError(Exception):
    """The recovery store can't be used as asked; says what to do."""


def is_on() -> bool:
    """Whether `bytewax.run` was given a recovery folder."""
    return _VARIABLE in os.environ or any(
        argument in ("-r", "--recovery-directory") or argument.startswith("--recovery-directory=")
        for argument in sys.argv
    )


def prepare(data_dir: Path, parts: int, shards: int) -> Path:
    """The recovery folder under `data_dir`, made if it is not there. Safe if several processes start at once.

    RecoveryError where it was made for another number of shards: customers would be looked for in the wrong one.
    """
    folder = data_dir / "recovery"
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "recovery.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "lineage").exists():
            if (data_dir / "journal").exists():
                raise RecoveryError(
                    f"{data_dir / 'journal'}: is there without its recovery store {folder}; restore both together,"
                    " or remove the journal to count anew from the source's beginning"
                )
            folder.mkdir(exist_ok=True)
            (folder / "shards").write_text(str(shards))
            if not list(folder.glob("part-*.sqlite3")):
                init_db_dir(folder, parts)  # type: ignore[no-untyped-call]
            # Last, as it says that the rest is there.
            (folder / "lineage").write_text(uuid.uuid4().hex)
    made_for = (folder / "shards").read_text()
    if made_for != str(shards):
        raise RecoveryError(
            f"{folder}: was made for {made_for} shards, which can't be changed; set TIDEGATE_SHARDS={made_for},"
            " or start anew in another TIDEGATE_DATA_DIR"
        )
    return folder


def lineage(data_dir: Path) -> str:
    """The name of the recovery store's life: as long as it is the same, positions in it count."""
    return (data_dir / "recovery" / "lineage").read_text()


def start_over(folder: Path, epoch: timedelta) -> None:
    """Replaces this process by the same command with recovery on. Does not return."""
    os.environ[_VARIABLE] = str(folder)
    os.environ.setdefault("BYTEWAX_SNAPSHOT_INTERVAL", str(int(epoch.total_seconds())))
    os.environ.setdefault("BYTEWAX_RECOVERY_BACKUP_INTERVAL", "0")
    # Polls are blocks of megabytes: glibc would give each back to the kernel, and take its pages anew.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(64 << 20))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(256 << 20))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
