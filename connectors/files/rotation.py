"""Where the rest of a log is after it was rotated: beside it, under a name of its own.

Names are those that logrotate and loggers give: `in.log.1`, `in.log-20261129`, `in-20261129.log`. What is compressed
is left out.
"""

import os
import re
import stat
from collections.abc import Collection
from typing import NamedTuple

COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip")
_ENTRIES_MAX = 10_000


class Sibling(NamedTuple):
    path: str
    stat: os.stat_result


def renamed(path: str) -> list[Sibling]:
    """Return the files that the file at `path` may have been renamed or copied to, the newest first."""
    stem = os.path.splitext(os.path.basename(path))[0]
    found = [
        each
        for each in _siblings(path)
        if os.path.basename(each.path).startswith(stem) and not each.path.endswith(COMPRESSED)
    ]
    return sorted(found, key=_age, reverse=True)


def newer(
    path: str, since: int, but: Collection[str] = (), read: os.stat_result | None = None
) -> tuple[list[str], list[str]]:
    """Return the rotated files of `path` that were written after `since`, the oldest first, and the compressed ones.

    `since` is in ns. Those in `but` are read by themselves, and `read` is the one that was read already.
    """
    name = _rotated_name(path)
    found = [
        each
        for each in _siblings(path)
        if each.path not in but
        and name.fullmatch(os.path.basename(each.path))
        and each.stat.st_mtime_ns >= since
        and not (read and os.path.samestat(each.stat, read))
    ]
    paths = [each.path for each in sorted(found, key=_age)]
    return [p for p in paths if not p.endswith(COMPRESSED)], [p for p in paths if p.endswith(COMPRESSED)]


def _age(each: Sibling) -> tuple[int, int, str]:
    """Sort from the oldest: by time, and where that is the same `in.log.2` before `in.log.1`."""
    number = re.search(r"\.(\d{1,6})(?:\.\w+)?$", each.path)
    return each.stat.st_mtime_ns, -int(number[1]) if number else 0, each.path


def _rotated_name(path: str) -> re.Pattern[str]:
    name = os.path.basename(path)
    stem, extension = os.path.splitext(name)
    packed = "|".join(map(re.escape, COMPRESSED))
    after = rf"{re.escape(name)}[.\-_]\d[\w.:\-]*"
    within = rf"{re.escape(stem)}(?:\.\d+|[.\-_]\d{{4}}[\d.:\-T_]+){re.escape(extension)}(?:{packed})?"
    return re.compile(f"{after}|{within}" if extension else after)


def _siblings(path: str) -> list[Sibling]:
    """Return the regular files beside `path`, which is not one of them."""
    found: list[Sibling] = []
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                if len(found) == _ENTRIES_MAX:
                    break
                if entry.name != name and entry.is_file(follow_symlinks=False):
                    found.append(Sibling(os.path.join(folder, entry.name), entry.stat(follow_symlinks=False)))
    except OSError:
        return found
    return [each for each in found if stat.S_ISREG(each.stat.st_mode)]
