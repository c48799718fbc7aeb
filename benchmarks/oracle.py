"""The right answer, by other means: DuckDB over the whole input, in one query, exact.

It shares nothing with the flow but the input. Quantities are taken from the text of the line, for DuckDB's
JSON reader makes binary floats of decimals. A repeat is an equal identity; the generator writes no
conflicts, and the query refuses an input that has some.
"""

import csv
import importlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import duckdb

FIRST_SHOWN = 5


class Row(NamedTuple):
    """One total: `start` in µs since the epoch, `total` as canonical decimal text."""

    customer: str
    meter: str
    window: str
    start: int
    total: str
    events: int


@dataclass(frozen=True)
class Verdict:
    """What a comparison found; `differences` tells the first few in words."""

    expected: int
    compared: int
    wrong: int
    differences: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        return self.wrong == 0 and self.expected == self.compared


LINES = """
CREATE TEMP TABLE event AS
WITH line AS (
    SELECT line, json_transform(line, '{"id": "VARCHAR", "source": "VARCHAR", "subject": "VARCHAR",
                                        "type": "VARCHAR", "time": "VARCHAR"}') AS e
    FROM read_csv(?, columns = {line: 'VARCHAR'}, delim = '\x01', quote = '', escape = '', header = false,
                  auto_detect = false)
), once AS (
    SELECT min(line) AS line, any_value(e) AS e, min(line) = max(line) AS same
    FROM line GROUP BY e.subject, e.source, e.id
)
SELECT e.subject AS customer, e.type AS name, e.time::TIMESTAMPTZ AT TIME ZONE 'UTC' AS moment,
       CASE WHEN same THEN line ELSE error('two payloads under one identity: ' || line) END AS line
FROM once
"""

TOTALS = """
CREATE TEMP TABLE expected AS
WITH reading AS (
    SELECT customer, moment, 'tokens_in' AS meter, 'sum' AS kind,
           regexp_extract(line, '"input_tokens":([0-9]+)', 1)::DECIMAL(18, 3) AS quantity
    FROM event WHERE name = 'llm.completion' AND contains(line, '"cached":false')
    UNION ALL
    SELECT customer, moment, 'tokens_out', 'sum',
           regexp_extract(line, '"output_tokens":([0-9]+)', 1)::DECIMAL(18, 3)
    FROM event WHERE name = 'llm.completion'
    UNION ALL
    SELECT customer, moment, 'requests', 'sum', 1::DECIMAL(18, 3) FROM event WHERE name = 'llm.completion'
    UNION ALL
    SELECT customer, moment, 'gpu_seconds', 'sum',
           regexp_extract(line, '"seconds":([0-9]+[.][0-9]{3})[,}]', 1)::DECIMAL(18, 3)
    FROM event WHERE name = 'gpu.job'
    UNION ALL
    SELECT customer, moment, 'context', 'max', regexp_extract(line, '"context":([0-9]+)', 1)::DECIMAL(18, 3)
    FROM event WHERE name = 'llm.session'
), bucket AS (
    SELECT *, unnest(['hour', 'day', 'period']) AS "window",
           unnest([date_trunc('hour', moment), date_trunc('day', moment),
                   date_trunc('month', moment)]) AS start
    FROM reading
), total AS (
    SELECT customer, meter, "window", epoch_us(start) AS start, count(*) AS events,
           CASE any_value(kind) WHEN 'sum' THEN sum(quantity) ELSE max(quantity)::DECIMAL(38, 3) END AS total
    FROM bucket GROUP BY ALL
)
SELECT customer, meter, "window", start, rtrim(rtrim(total::VARCHAR, '0'), '.') AS total, events FROM total
"""

DIFFERENCES = """
SELECT coalesce(e.customer, g.customer), coalesce(e.meter, g.meter), coalesce(e."window", g."window"),
       coalesce(e.start, g.start), e.total, e.events, g.total, g.events
FROM expected e FULL OUTER JOIN got g USING (customer, meter, "window", start)
WHERE e.total IS DISTINCT FROM g.total OR e.events IS DISTINCT FROM g.events
ORDER BY ALL
"""


def expected(files: Sequence[Path], cache: Path | None = None) -> Path:
    """A Parquet file with every total that `files` add up to; `cache` is used if it is there."""
    path = cache or Path(tempfile.mkstemp(suffix=".parquet")[1])
    if cache is None or not cache.exists():
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(LINES, [[str(file) for file in files]])
            connection.execute(TOTALS)
            partial = path.with_suffix(".partial")
            connection.execute(f"COPY expected TO '{partial}' (FORMAT parquet)")
            partial.replace(path)
    return path


def rows(path: Path) -> Iterator[Row]:
    """What `expected` wrote, sorted."""
    with duckdb.connect() as connection:
        for found in connection.execute(f"FROM '{path}' ORDER BY ALL").fetchall():
            yield Row(*found)


def compare(got: Iterable[Row], right: Path) -> Verdict:
    """Whether `got` is exactly what `right` (a file of `expected`) holds, total by total."""
    with tempfile.NamedTemporaryFile("w", suffix=".csv", newline="") as file:
        csv.writer(file).writerows(got)
        file.flush()
        with duckdb.connect() as connection:
            connection.execute(f"CREATE TEMP TABLE expected AS FROM '{right}'")
            connection.execute(
                """CREATE TEMP TABLE got AS FROM read_csv(?, header = false, auto_detect = false, columns = {
                customer: 'VARCHAR', meter: 'VARCHAR', "window": 'VARCHAR', start: 'BIGINT', total: 'VARCHAR',
                events: 'BIGINT'})""",
                [file.name],
            )
            wrong = connection.execute(DIFFERENCES).fetchall()
            counts = connection.execute(
                "SELECT (SELECT count(*) FROM expected), (SELECT count(*) FROM got)"
            ).fetchone()
    assert counts
    return Verdict(counts[0], counts[1], len(wrong), tuple(map(_told, wrong[:FIRST_SHOWN])))


def _told(row: tuple[str, str, str, int, str | None, int | None, str | None, int | None]) -> str:
    customer, meter, window, start, total, events, got_total, got_events = row
    right = "none" if total is None else f"{total} of {events} events"
    got = "none" if got_total is None else f"{got_total} of {got_events} events"
    return f"{customer} {meter} {window} {start}: expected {right}, got {got}"


def stored(url: str) -> Iterator[Row]:
    """Every total in a store of the flow; `url` is `sqlite:PATH`."""
    scheme, _, path = url.partition(":")
    assert scheme == "sqlite", f"can read sqlite:PATH, got {url}"
    reader = importlib.import_module("tidegate.connectors.sqlite.store").SqliteReader(Path(path))
    try:
        for total, _written_at in reader.totals():
            yield Row(total.customer, total.meter, total.window, total.start, str(total.total), total.events)
    finally:
        reader.close()


def dumped(path: Path) -> Iterator[Row]:
    """Totals written as JSON lines by the loop."""
    with path.open() as lines:
        for line in lines:
            yield Row(*json.loads(line))
