"""File descriptors: as many as connections may need, or fewer connections.

A process that has none left accepts nothing, opens no file and no store.
"""

import resource
from collections.abc import Callable
from typing import Final

from tidegate.settings.serving import ServingSettings

OWN: Final = 200
"""Of the store, its readers and writers, the log of events, keys, threads and libraries."""
CONNECTIONS_MIN: Final = 16


def fit_descriptors(settings: ServingSettings, warn: Callable[[str], None]) -> ServingSettings:
    """Return the settings with no more connections than this process can have, after allowing it what it may have."""
    wanted = settings.connections + OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _raised(soft, hard, wanted)
    if allowed >= wanted:
        return settings
    connections = max(allowed - OWN, allowed // 2, CONNECTIONS_MIN)
    streams = min(settings.streams_max, connections // 2)
    warn(
        f"WARNING: this process may have {allowed} open files, and {settings.connections} connections need {wanted}: "
        f"it takes at most {connections} connections and {streams} streams; raise the limit (ulimit -n, LimitNOFILE)"
    )
    return settings.model_copy(update={"connections_max": connections, "streams_max": streams})


def _raised(soft: int, hard: int, wanted: int) -> int:
    """Raise the soft limit to what is wanted, or as far as it goes, and return what it is."""
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    aim = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
    except (OSError, ValueError):
        return soft
    return aim
