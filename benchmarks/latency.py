"""From append to visible: how long until an event that was written to a followed file shows in the store.

A writer process appends events at a steady rate, many times a second, and notes when; the flow follows the
file; this process asks the store's change feed who changed and reads the customers it watches. All events
are of one meter that counts them, so a total of n says that the customer's n-th event is visible, as are
all before it. One event in twenty is watched, so that looking does not become the load. The looking is
every half millisecond, which is part of the answer.
"""

import importlib
import json
import random
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypedDict

from benchmarks.contestants import FLOW, LOG_SHOWN, Failed, environment, flow_settings
from benchmarks.generate import CATALOG_YAML
from tidegate.operators.model.ports import StoreReader

CUSTOMERS = 2000
WATCHED = 100
TICK_S = 0.002
LOOK_S = 0.0005
# Usage of now, as billing sends nothing that is much older.
START = datetime.now(UTC)
PATIENCE_S = 60.0
SETTLED_S = 3.0
METER = "requests"

# When a count was seen, and the count.
Sighting = tuple[float, int]


class Written(TypedDict):
    """Per customer the number of events; per watched customer when each was appended."""

    counts: list[int]
    appended: list[list[float]]


@dataclass(frozen=True)
class Latency:
    """What was seen of one run; `events` were written, `watched` of them looked for."""

    epoch: str
    rate: float
    events: int
    watched: int
    p50_ms: float
    p99_ms: float
    greatest_ms: float


def write(path: Path, notes: Path, seconds: float, rate: int) -> None:
    """Appends events at `rate`; then writes down when each event of each watched customer was appended."""
    choose = random.Random(1)
    appended = [array("d") for _ in range(WATCHED)]
    counts = [0] * CUSTOMERS
    written = 0
    begin = time.monotonic()
    with path.open("ab", buffering=0) as file:
        while (now := time.monotonic() - begin) < seconds:
            due = int(now * rate)
            lines = []
            customers = [choose.randrange(CUSTOMERS) for _ in range(written, due)]
            for number, customer in enumerate(customers, start=written):
                lines.append(_line(number, customer, START + timedelta(seconds=number / rate)))
            block = "".join(lines).encode()
            moment = time.monotonic()
            file.write(block)
            for customer in customers:
                counts[customer] += 1
                if customer < WATCHED:
                    appended[customer].append(moment)
            written = due
            time.sleep(max(0.0, TICK_S - (time.monotonic() - begin - now)))
    notes.write_text(json.dumps({"counts": counts, "appended": [times.tolist() for times in appended]}))


def _line(number: int, customer: int, at: datetime) -> str:
    return (
        f'{{"specversion":"1.0","id":"evt-{number:016x}","source":"/gateway/eu-1","type":"llm.completion",'
        f'"subject":"cust-{customer:06d}","time":"{at:%Y-%m-%dT%H:%M:%S.%f}Z","data":{{"model":"m-large",'
        f'"input_tokens":{number % 4000},"output_tokens":{number % 900},"cached":false}}}}\n'
    )


def measure(
    directory: Path, epoch: str, seconds: float, rate: int, catalog_yaml: str = CATALOG_YAML, **settings: str
) -> Latency:
    """One run in a folder that is made, with more settings; Failed if the flow ends, or if an event never shows."""
    directory.mkdir(parents=True)
    events, notes, catalog = directory / "events.ndjson", directory / "notes.json", directory / "catalog.yaml"
    catalog.write_text(catalog_yaml)
    # One event beforehand, of a customer of its own: when it shows, everything is up.
    events.write_text(_line(0, CUSTOMERS, START))
    with _flow(events, catalog, directory, epoch, settings) as flow:
        reader = _opened(directory / "totals.db", flow)
        arguments = ("-m", "benchmarks.latency", str(events), str(notes), str(seconds), str(rate))
        writer = subprocess.Popen([sys.executable, *arguments], env=environment())
        sightings = _watch(reader, flow, lambda: writer.poll() is not None)
        written: Written = json.loads(notes.read_text())
        _check(reader, written["counts"])
        reader.close()
    delays = sorted(_delays(written["appended"], sightings))
    return Latency(
        epoch=epoch,
        rate=sum(written["counts"]) / seconds,
        events=sum(written["counts"]),
        watched=len(delays),
        p50_ms=delays[len(delays) // 2] * 1000,
        p99_ms=delays[len(delays) * 99 // 100] * 1000,
        greatest_ms=delays[-1] * 1000,
    )


@contextmanager
def _flow(
    events: Path, catalog: Path, directory: Path, epoch: str, more: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    settings = flow_settings(f"file:{events}?follow=true", catalog, directory, epoch=epoch, **more)
    log = directory / "log"
    with log.open("wb") as out:
        flow = subprocess.Popen(
            [sys.executable, *FLOW], env=environment(**settings), cwd=directory, stdout=out, stderr=out
        )
        try:
            yield flow
            if flow.poll() is not None:
                raise Failed(f"the flow ended with {flow.returncode} before it was told to")
        except Failed as error:
            raise Failed(f"{error}\n{log.read_text(errors='replace')[-LOG_SHOWN:]}") from error
        finally:
            flow.kill()
            flow.wait()


def _opened(store: Path, flow: "subprocess.Popen[bytes]") -> StoreReader:
    """A reader of the store, once the event that was there at the start is visible."""
    sqlite = importlib.import_module("tidegate.connectors.sqlite.store")
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and flow.poll() is None:
        if store.exists():
            reader: StoreReader = sqlite.SqliteReader(store)
            if _count(reader, CUSTOMERS):
                return reader
            reader.close()
        time.sleep(0.05)
    raise Failed("the first event did not show in the store")


def _watch(
    reader: StoreReader,
    flow: "subprocess.Popen[bytes]",
    is_written: Callable[[], bool],
    look_s: float = LOOK_S,
) -> list[list[Sighting]]:
    """When each watched customer's count was seen to grow, and to what; until nothing grows any more.

    It rests for `look_s` between two looks.
    """
    sightings: list[list[Sighting]] = [[] for _ in range(WATCHED)]
    names = {_name(customer): customer for customer in range(WATCHED)}
    seq = reader.changes(0).seq
    last = time.monotonic()
    while flow.poll() is None and not (is_written() and time.monotonic() - last > SETTLED_S):
        time.sleep(look_s)
        changes = reader.changes(seq)
        if changes.seq == seq:
            continue
        seq, last = changes.seq, time.monotonic()
        for name in names.keys() & changes.customers if changes.complete else names:
            count = _count(reader, names[name])
            found = sightings[names[name]]
            if not found or count > found[-1][1]:
                found.append((time.monotonic(), count))
    return sightings


def _count(reader: StoreReader, customer: int) -> int:
    totals = (stored.total for stored in reader.read(_name(customer)))
    return sum(int(total.total) for total in totals if (total.window, total.meter) == ("period", METER))


def _name(customer: int) -> str:
    return f"cust-{customer:06d}"


def _check(reader: StoreReader, counts: list[int]) -> None:
    for customer, count in enumerate(counts):
        if (found := _count(reader, customer)) != count:
            raise Failed(f"{_name(customer)}: {count} events were written, the store has {found}")


def _delays(appended: list[list[float]], sightings: list[list[Sighting]]) -> Iterator[float]:
    for times, seen in zip(appended, sightings, strict=True):
        reached = 0
        for moment, count in seen:
            yield from (moment - then for then in times[reached:count])
            reached = count


def main() -> None:
    """The writer process."""
    path, notes, seconds, rate = sys.argv[1:]
    write(Path(path), Path(notes), float(seconds), int(rate))


if __name__ == "__main__":
    main()
