"""From produced to visible: how long until an event that was handed to Kafka's client shows in the store.

As benchmarks/latency.py, which appends to a file: a writer process produces events at a steady rate, waits for nothing,
and notes when; this process asks the store who changed and reads the customers that it watches. It does so every 5 ms,
which is part of the answer: a look at Redis takes its server and this process some milliseconds of the same two cores.
"""

import json
import random
import subprocess
import sys
import time
from array import array
from datetime import timedelta
from pathlib import Path
from statistics import median

from confluent_kafka import Producer
from pydantic import TypeAdapter

from benchmarks.contestants import FLOW, LOG_SHOWN, Failed, environment, flow_settings
from benchmarks.generate import CATALOG_YAML
from benchmarks.latency import (
    CUSTOMERS,
    PATIENCE_S,
    START,
    TICK_S,
    WATCHED,
    Latency,
    Written,
    _check,
    _count,
    _delays,
    _line,
    _name,
    _watch,
)  # fmt: skip
from benchmarks.run import Finding, Report
from tests.support.kafka_server import Kafka
from tidegate.operators.model.ports import StoreError, StoreReader
from tidegate.settings.addresses.stores import Store

GOAL_MS = 100
LOOK_S = 0.005


def report(kafka: Kafka, scratch: Path, store: str, seconds: float, rate: int, rounds: int) -> Report:
    """The latencies of some runs."""
    places = [(scratch / str(number), f"{store}{_own(store, number)}") for number in range(rounds)]
    seen = [measure(kafka, *place, seconds, rate) for place in places]
    findings = []
    for name, goal, values in (
        ("p50", None, [one.p50_ms for one in seen]),
        ("p99", GOAL_MS, [one.p99_ms for one in seen]),
        ("greatest", None, [one.greatest_ms for one in seen]),
    ):
        value = median(values)
        told, is_met = f"≤ {goal}" if goal else "", goal is None or value <= goal
        findings.append(Finding(f"{name} ms", told, value, min(values), max(values), is_met))
    title = f"Kafka → {store.partition(':')[0]}, latency at {rate:,} events/s"
    return Report(title, (), tuple(findings), {})


def _own(store: str, number: int) -> str:
    return f"?prefix=run-{number}" if store.startswith("redis") else f"-{number}"


def write(brokers: str, topic: str, notes: Path, seconds: float, rate: int) -> None:
    """Produces events at `rate`; then writes down when each event of each watched customer was."""
    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True})
    # Until its first message is there, a client finds its broker and gets a number there: no latency of the flow's.
    producer.produce(topic, _line(1, CUSTOMERS, START)[:-1], _name(CUSTOMERS))
    assert producer.flush(60) == 0
    choose = random.Random(1)
    appended = [array("d") for _ in range(WATCHED)]
    counts = [0] * CUSTOMERS
    written = 0
    begin = time.monotonic()
    while (now := time.monotonic() - begin) < seconds:
        due = int(now * rate)
        for number in range(written, due):
            customer = choose.randrange(CUSTOMERS)
            line = _line(number, customer, START + timedelta(seconds=number / rate))
            counts[customer] += 1
            if customer < WATCHED:
                appended[customer].append(time.monotonic())
            producer.produce(topic, line[:-1], _name(customer))
        producer.poll(0)
        written = due
        time.sleep(max(0.0, TICK_S - (time.monotonic() - begin - now)))
    assert producer.flush(60) == 0
    notes.write_text(json.dumps({"counts": counts, "appended": [times.tolist() for times in appended]}))


def measure(kafka: Kafka, directory: Path, store: str, seconds: float, rate: int) -> Latency:
    """One run in a folder that is made; Failed if the flow ends, or if an event never shows."""
    directory.mkdir(parents=True)
    notes, catalog = directory / "notes.json", directory / "catalog.yaml"
    catalog.write_text(CATALOG_YAML)
    topic = kafka.topic(2)
    # One event beforehand, of a customer of its own: when it shows, everything is up.
    kafka.put(topic, [_line(0, CUSTOMERS, START).encode()])
    source = f"kafka://{kafka.bootstrap}/{topic}"
    settings = flow_settings(source, catalog, directory, store=store, clock="event")
    log = directory / "log"
    with log.open("wb") as out:
        command = [sys.executable, *FLOW]
        flow = subprocess.Popen(command, env=environment(**settings), cwd=directory, stdout=out, stderr=out)
        try:
            reader = _opened(store, flow)
            arguments = (kafka.bootstrap, topic, str(notes), str(seconds), str(rate))
            command = [sys.executable, "-m", "benchmarks.kafka_latency", *arguments]
            writer = subprocess.Popen(command, env=environment())
            sightings = _watch(reader, flow, lambda: writer.poll() is not None, LOOK_S)
            written: Written = json.loads(notes.read_text())
            _check(reader, written["counts"])
            reader.close()
        except Failed as error:
            raise Failed(f"{error}\n{log.read_text(errors='replace')[-LOG_SHOWN:]}") from error
        finally:
            flow.kill()
            flow.wait()
    delays = sorted(_delays(written["appended"], sightings))
    return Latency(
        epoch="10s",
        rate=sum(written["counts"]) / seconds,
        events=sum(written["counts"]),
        watched=len(delays),
        p50_ms=delays[len(delays) // 2] * 1000,
        p99_ms=delays[len(delays) * 99 // 100] * 1000,
        greatest_ms=delays[-1] * 1000,
    )


def _opened(store: str, flow: "subprocess.Popen[bytes]") -> StoreReader:
    """A reader of the store, once the event that was there at the start is visible."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and flow.poll() is None:
        try:
            reader: StoreReader = TypeAdapter(Store).validate_python(store).open_reader()
            if _count(reader, CUSTOMERS):
                return reader
            reader.close()
        except StoreError:
            pass
        time.sleep(0.05)
    raise Failed("the first event did not show in the store")


if __name__ == "__main__":
    brokers, topic, notes, seconds, rate = sys.argv[1:]
    write(brokers, topic, Path(notes), float(seconds), int(rate))
