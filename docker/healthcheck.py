"""Ends with 0 if the process in this container is ready, at the address that its settings name.

The first argument may be another path than `readyz`: `healthz`, which says that the process lives though its store or
its peers may be away.
"""

import os
import sys
import urllib.error
import urllib.request


def process() -> int:
    """Return the number of this process in its cluster, in the way `bytewax.run` finds it."""
    pod, group = os.environ.get("BYTEWAX_POD_NAME", ""), os.environ.get("BYTEWAX_STATEFULSET_NAME", "")
    return int(os.environ.get("BYTEWAX_PROCESS_ID") or pod.removeprefix(f"{group}-") or 0)


def url(path: str) -> str:
    _, _, port = os.environ.get("TIDEGATE_METRICS", "").rpartition(":")
    if port:
        return f"http://127.0.0.1:{int(port) + process()}/{path}"
    # The service has no port of its own for probes.
    _, _, port = os.environ.get("TIDEGATE_LISTEN", "0.0.0.0:8080").rpartition(":")
    return f"http://127.0.0.1:{port}/{path}"


try:
    with urllib.request.urlopen(url(sys.argv[1] if sys.argv[1:] else "readyz"), timeout=2) as answer:
        sys.exit(answer.status != 200)
except (OSError, urllib.error.HTTPError):
    sys.exit(1)
