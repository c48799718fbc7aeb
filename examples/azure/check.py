"""Counts the trace a second time, straight from the CSV with DuckDB, and compares every total.

Nothing is shared with the flow, nor with `convert.py`: the rule for customers stands here in SQL.
"""

import importlib
import sys
from pathlib import Path

import duckdb

# Customer, meter, window and start (µs since the epoch), to the total as text.
Totals = dict[tuple[str, str, str, int], str]

COUNT = """
WITH numbered AS (
    SELECT row_number() OVER () AS row, * FROM read_csv(?, header = true, auto_detect = false, columns = {
        TIMESTAMP: 'VARCHAR', ContextTokens: 'BIGINT', GeneratedTokens: 'BIGINT'})
), request AS (
    SELECT strptime(substr("TIMESTAMP", 1, 19), '%Y-%m-%d %H:%M:%S') AS moment,
           ContextTokens, GeneratedTokens,
           ('0x' || substr(sha256('azure:' || row), 1, 8))::BIGINT::HUGEINT AS h
    FROM numbered
), reading AS (
    SELECT 'customer-' || lpad((40 * h * h * h // 79228162514264337593543950336)::VARCHAR, 2, '0')
               AS customer,
           moment, unnest(['tokens_in', 'tokens_out', 'requests']) AS meter,
           unnest([ContextTokens, GeneratedTokens, 1]) AS quantity
    FROM request
), bucket AS (
    SELECT *, unnest(['hour', 'day', 'period']) AS "window",
           unnest([date_trunc('hour', moment), date_trunc('day', moment),
                   date_trunc('month', moment)]) AS start
    FROM reading
)
SELECT customer, meter, "window", epoch_us(start::TIMESTAMP), sum(quantity)::VARCHAR
FROM bucket GROUP BY ALL ORDER BY ALL
"""


def counted(trace: Path) -> Totals:
    """Return what the trace adds up to, per customer, meter and hour, day and calendar month in UTC."""
    # One thread reads rows in their order.
    with duckdb.connect(config={"threads": 1}) as connection:
        rows = connection.execute(COUNT, [str(trace)]).fetchall()
    return {(customer, meter, window, start): total for customer, meter, window, start, total in rows}


def stored(store: Path) -> Totals:
    """Return what the flow wrote into its SQLite store."""
    reader = importlib.import_module("tidegate.connectors.sqlite.store").SqliteReader(store)
    try:
        totals = [stored.total for stored in reader.totals()]
    finally:
        reader.close()
    return {(t.customer, t.meter, t.window, t.start): str(t.total) for t in totals}


def differences(right: Totals, got: Totals) -> list[str]:
    """Return a sentence for each total that is missing, extra or different."""
    return [
        f"{' '.join(map(str, key))}: expected {right.get(key, 'none')}, got {got.get(key, 'none')}"
        for key in sorted(right.keys() | got.keys())
        if right.get(key) != got.get(key)
    ]


def main() -> None:
    trace, store = map(Path, sys.argv[1:])
    right = counted(trace)
    wrong = differences(right, stored(store))
    print("\n".join(wrong[:10]) or f"all {len(right):,} totals are equal")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
