"""Turns a trace of LLM requests (TIMESTAMP, ContextTokens, GeneratedTokens) into usage events.

The trace names no customers, so a rule does: with h the first eight hex digits of the SHA-256 of
`azure:ROW`, rows counted from 1, the customer's number is ⌊40 · (h / 2³²)³⌋. That is the same on every
machine, and skewed: customer-00 makes 29 % of the requests, each of the last ten about 1 %. An event's
id is its row, its time the trace's, UTC, with all digits (the meter cuts them to microseconds).
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

CUSTOMERS = 40
COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


def customer_of(row: int) -> str:
    """Return the customer of a row of the trace."""
    h = int(sha256(f"azure:{row}".encode()).hexdigest()[:8], 16)
    return f"customer-{CUSTOMERS * h**3 >> 96:02d}"


def events(lines: Iterable[str]) -> Iterator[str]:
    """Return a CloudEvent per row, as a line of JSON. Raises ValueError where the columns are others."""
    rows = csv.reader(lines)
    if (header := next(rows, None)) != COLUMNS:
        raise ValueError(f"needs the columns {','.join(COLUMNS)}, got {header}")
    for number, (timestamp, tokens_in, tokens_out) in enumerate(rows, start=1):
        event = {
            "specversion": "1.0",
            "id": f"row-{number}",
            "source": "/azure/llm-conversation",
            "type": "llm.request",
            "subject": customer_of(number),
            "time": f"{timestamp.replace(' ', 'T')}Z",
            "data": {"input_tokens": int(tokens_in), "output_tokens": int(tokens_out)},
        }
        yield json.dumps(event, separators=(",", ":"))


def convert(trace: Path, target: Path) -> int:
    """Write the events of `trace` to `target`, one a line, and return how many."""
    count = 0
    with trace.open(newline="") as lines, target.open("w") as out:
        for line in events(lines):
            out.write(line + "\n")
            count += 1
    return count


def main() -> None:
    trace, target = map(Path, sys.argv[1:])
    print(f"{convert(trace, target):,} events")


if __name__ == "__main__":
    main()
