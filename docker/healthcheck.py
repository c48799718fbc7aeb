"""Ends with 0 if the process in this container is ready, at the address that its settings name."""

import os
import sys
import urllib.error
import urllib.request

_, _, port = os.environ.get("TIDEGATE_METRICS", "").rpartition(":")
process = os.environ.get("BYTEWAX_PROCESS_ID", "0")
if port and os.environ.get("TIDEGATE_HEALTH") is None:
    url = f"http://127.0.0.1:{int(port) + int(process)}/readyz"
else:
    url = os.environ.get("TIDEGATE_HEALTH", "http://127.0.0.1:8080/readyz")
try:
    with urllib.request.urlopen(url, timeout=2) as answer:
        sys.exit(answer.status != 200)
except (OSError, urllib.error.HTTPError):
    sys.exit(1)
