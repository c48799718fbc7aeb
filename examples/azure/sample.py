"""Writes sample.csv: a made-up trace in the format of the real one, the same for everyone.

    python -m examples.azure.sample > examples/azure/sample.csv

Nothing in it is taken from a trace: arrivals over six hours around the end of March 2026 are drawn from
a triangle, token counts are log-normal, all from one seed.
"""

import random
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta

ROWS = 480
SPAN_S = 6 * 3600
START = datetime(2026, 3, 31, 21)


def rows() -> Iterator[str]:
    """Return the lines of the file, the header first."""
    chance = random.Random(2026)
    yield "TIMESTAMP,ContextTokens,GeneratedTokens"
    for second in sorted(chance.triangular(0, SPAN_S) for _ in range(ROWS)):
        at = START + timedelta(seconds=int(second))
        ticks = int(second % 1 * 10_000_000)
        context = min(int(chance.lognormvariate(6.6, 0.9)) + 1, 14_000)
        generated = min(int(chance.lognormvariate(5.1, 0.7)) + 1, 1_000)
        yield f"{at:%Y-%m-%d %H:%M:%S}.{ticks:07d},{context},{generated}"


def main() -> None:
    sys.stdout.writelines(line + "\n" for line in rows())


if __name__ == "__main__":
    main()
