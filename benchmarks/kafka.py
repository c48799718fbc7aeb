"""Measures the flow from Kafka into Redis beside a consumer written by hand, in the same run, alternating.

    python -m benchmarks.kafka                          # flow and consumer by hand, one and two processes of each
    python -m benchmarks.kafka --events 9000000 --only flow2 --rounds 1     # a minute of it
    python -m benchmarks.kafka --latency                # produced to visible at 5,000 events/s

Broker (Apache Kafka, one node) and Redis run on the same cores. The topic is filled beforehand; a rate is events over
seconds from a process's start to its end, less what it takes for one event. Every total is compared with the
oracle's.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from confluent_kafka import Producer
from pydantic import TypeAdapter
from rich.console import Console

from benchmarks import kafka_by_hand, kafka_latency, oracle
from benchmarks.contestants import FLOW, IN_ORDER_S, Command, Failed, Measured, flow_settings, free_ports, run
from benchmarks.generate import Dataset, add_arguments, generate, workload_of
from benchmarks.oracle import Row
from benchmarks.run import WIDTH, Report, Runs, line_of, ratio, show
from tests.support import redis_server
from tests.support.kafka_server import Brokers, Kafka
from tidegate.settings.addresses.stores import Store

PARTITIONS = 4
GOAL = 3.0
TITLES = {
    "flow1": "flow, 1 process",
    "flow2": "flow, 2 processes",
    "hand1": "by hand, 1 process",
    "hand2": "by hand, 2 processes",
}


def fill(kafka: Kafka, dataset: Dataset) -> str:
    """A new topic with the data set, each customer's events in one partition."""
    topic = kafka.topic(PARTITIONS)
    producer = Producer(
        kafka.client(
            partitioner="murmur2_random", linger__ms=50, batch__num__messages=10_000,
            queue__buffering__max__messages=1_000_000,
        )
    )  # fmt: skip
    with dataset.whole.open("rb") as lines:
        for number, line in enumerate(lines):
            start = line.index(b'"subject":"') + 11
            producer.produce(topic, line[:-1], line[start : line.index(b'"', start)])
            if number % 10_000 == 0:
                while len(producer) > 500_000:
                    producer.poll(0.1)
    assert producer.flush(600) == 0
    return topic


class Bench:
    """Topics, a Redis, and the ways to get from one to the other."""

    def __init__(self, kafka: Kafka, port: int, scratch: Path, rounds: int, console: Console) -> None:
        self.kafka, self.port, self.scratch, self.rounds, self.console = kafka, port, scratch, rounds, console

    def measure(self, name: str, topic: str, dataset: Dataset) -> Measured:
        """One run, every total compared; Failed if a single one is wrong."""
        directory = self.scratch / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        redis_server_flush(self.port)
        count = int(name[-1])
        commands = (
            self._flow(topic, dataset, directory, count) if "flow" in name else self._by_hand(topic, count)
        )
        usages = run(commands, directory)
        measured = Measured(dataset.events, usages, (0,) * count)
        self._check(name, dataset)
        return measured

    def _flow(self, topic: str, dataset: Dataset, directory: Path, count: int) -> list[Command]:
        settings = flow_settings(
            f"kafka://{self.kafka.bootstrap}/{topic}?follow=false&group={directory.name}",
            dataset.catalog, directory,
            store=f"redis://127.0.0.1:{self.port}", clock="event", recovery_parts=str(count),
        )  # fmt: skip
        addresses = ";".join(f"127.0.0.1:{port}" for port in free_ports(count))
        spread = [("-i", str(number), "-a", addresses) if count > 1 else () for number in range(count)]
        commands = enumerate(spread)
        return [Command((*FLOW[:2], *options, FLOW[2]), settings, IN_ORDER_S * i) for i, options in commands]

    def _by_hand(self, topic: str, count: int) -> list[Command]:
        shares = [
            ",".join(str(p) for p in range(PARTITIONS) if p % count == number) for number in range(count)
        ]
        at = self.kafka.bootstrap, topic
        return [Command(("-m", "benchmarks.kafka_by_hand", *at, share, str(self.port))) for share in shares]

    def _rows(self, name: str) -> Iterator[Row]:
        if "hand" in name:
            yield from kafka_by_hand.stored(self.port)
            return
        reader = TypeAdapter(Store).validate_python(f"redis://127.0.0.1:{self.port}").open_reader()
        for total, _ in reader.totals():
            yield Row(total.customer, total.meter, total.window, total.start, str(total.total), total.events)
        reader.close()

    def _check(self, name: str, dataset: Dataset) -> None:
        right = oracle.expected([dataset.whole], cache=dataset.directory / "expected.parquet")
        if "hand" in name:
            wanted = {row[:5] for row in oracle.rows(right)}
            wrong = len(wanted ^ {row[:5] for row in self._rows(name)})
        else:
            wrong = oracle.compare(self._rows(name), right).wrong
        if wrong:
            raise Failed(f"{name}: {wrong:,} totals are wrong")

    def alternate(self, ways: dict[str, Callable[[], Measured]]) -> Runs:
        """Each way once per round, in turn."""
        runs: Runs = {name: [] for name in ways}
        for number in range(self.rounds):
            for name, way in ways.items():
                runs[name].append(measured := way())
                self.console.print(
                    f"round {number + 1}, {name}: {measured.rate():,.0f} events/s, every total exact"
                )
        return runs


def redis_server_flush(port: int) -> None:
    """Empties the server."""
    import redis

    redis.Redis(port=port).flushall()


def side_by_side(bench: Bench, dataset: Dataset, one: Dataset, names: list[str]) -> Report:
    """Rates less start-up, and of each number of processes the flow's over that by hand."""
    topic, single = fill(bench.kafka, dataset), fill(bench.kafka, one)
    start_ups = {name: median(bench.measure(name, single, one).wall_s for _ in range(3)) for name in names}
    runs = bench.alternate({name: partial(bench.measure, name, topic, dataset) for name in names})
    rates = {name: [run.rate(start_ups[name]) for run in runs[name]] for name in names}
    findings = [
        ratio(f"flow{n} / hand{n}", GOAL, rates[f"flow{n}"], rates[f"hand{n}"])
        for n in (1, 2)
        if {f"flow{n}", f"hand{n}"} <= set(names)
    ]
    lines = tuple(line_of(TITLES[name], runs[name], start_ups[name]) for name in names)
    return Report("Kafka → Redis, broker and Redis on the same cores", lines, tuple(findings), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, alternating")
    parser.add_argument("--only", default="flow1,hand1,flow2,hand2", help=f"of {','.join(TITLES)}")
    parser.add_argument("--latency", action="store_true", help="produced to visible instead")
    parser.add_argument("--seconds", type=float, default=30, help="for --latency")
    parser.add_argument("--rate", type=int, default=5000, help="for --latency: events per second")
    parser.add_argument("--store", choices=("redis", "sqlite"), default="redis", help="for --latency")
    chosen = parser.parse_args()
    console = Console(stderr=True)
    kafka = Brokers()
    with tempfile.TemporaryDirectory(prefix="tidegate-kafka-") as folder, redis_server.single() as server:
        scratch = Path(folder)
        try:
            if chosen.latency:
                store = (
                    f"redis://127.0.0.1:{server.port}"
                    if chosen.store == "redis"
                    else f"sqlite:{scratch}/totals.db"
                )
                report = kafka_latency.report(
                    kafka, scratch, store, chosen.seconds, chosen.rate, chosen.rounds
                )
            else:
                workload = workload_of(chosen)
                one = generate(replace(workload, events=1, keys=5, duplicates=0.0, parts=1), chosen.dir)
                dataset = generate(replace(workload, parts=1), chosen.dir)
                bench = Bench(kafka, server.port, scratch, chosen.rounds, console)
                report = side_by_side(bench, dataset, one, chosen.only.split(","))
        except Failed as error:
            console.print(str(error), markup=False)
            sys.exit(1)
        finally:
            kafka.close()
    show(report, Console(width=None if sys.stdout.isatty() else WIDTH))


if __name__ == "__main__":
    main()
