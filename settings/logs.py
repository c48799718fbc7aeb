"""Log lines on standard error: for people, or one JSON object a line for machines."""

import logging
import sys
from typing import Literal

from tidegate.settings.foreign_lines import take_stderr

LEVEL = logging.INFO
# Libraries that tell of every request.
QUIET = ("httpx", "httpcore", "urllib3")


def configure(style: Literal["text", "json"]) -> None:
    """Set the root logger up, once, at the start of a process.

    As JSON, lines that libraries write to standard error by themselves become records too.
    """
    handler = logging.StreamHandler(take_stderr() if style == "json" else sys.stderr)
    handler.setFormatter(_formatter(style))
    logging.basicConfig(level=LEVEL, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _formatter(style: Literal["text", "json"]) -> logging.Formatter:
    if style == "text":
        return logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    from pythonjsonlogger.json import JsonFormatter

    renamed = {"asctime": "time", "levelname": "level", "name": "logger"}
    return JsonFormatter(
        "%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S%z", rename_fields=renamed
    )
