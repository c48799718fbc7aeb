"""The benchmark's input: a seeded stream of usage events as NDJSON, and the catalog that meters it.

Three kinds of CloudEvents of about 230 bytes feed five meters; an event gives 1.87 readings on average
(`llm.completion`, half of the events, feeds two or three, the others one). Customers are drawn by Zipf's
law, after every customer has had one event of each kind, so that every key is active. Some events repeat
byte for byte, some are out of order, some late by hours, and the stream crosses the end of a month. No
event is ever older than `OLDEST` behind its customer's latest, so that nothing is too late.

Equal parameters give equal bytes; a data set that is there already is not written again.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tidegate.operators.model.catalog import Catalog, Condition, Filter, Limit, Meter, Plan, Threshold
from tidegate.settings.catalog.plans import MAX_LAG

VERSION = 2
METERS = ("tokens_in", "tokens_out", "requests", "gpu_seconds", "context")
KINDS = 3
COMPLETION, JOB, SESSION = range(KINDS)
SHARES = (0.5, 0.25, 0.25)
OUT_OF_ORDER_MAX = timedelta(minutes=10)
LATE = (timedelta(hours=1), timedelta(hours=6))
REPEAT_MAX = timedelta(hours=1)
OLDEST = LATE[1] + REPEAT_MAX
CHUNK = 100_000
MODELS = ("m-large", "m-small", "m-vision", "m-code")
REGIONS = ("eu-1", "eu-2", "us-1", "us-2")

CATALOG_YAML = """\
meters:
  - name: tokens_in
    event_name: llm.completion
    aggregation: {type: sum, key: input_tokens}
    filter: {conjunction: and, clauses: [{key: cached, operator: equals, value: false}]}
    unit: tokens
  - {name: tokens_out, event_name: llm.completion, aggregation: {type: sum, key: output_tokens}, unit: tokens}
  - {name: requests, event_name: llm.completion, aggregation: {type: count}, unit: requests}
  - {name: gpu_seconds, event_name: gpu.job, aggregation: {type: sum, key: seconds}, unit: seconds}
  - {name: context, event_name: llm.session, aggregation: {type: max, key: context}, unit: tokens}
default_plan: standard
plans:
  standard:
    period: {type: calendar, every: month}
    limits:
      tokens_in: {cap: 400000, thresholds: [50%, 80%, 100%]}
      tokens_out: {included: 100000, on_cap: allow, thresholds: [80%, 100%]}
      requests: {cap: 600, thresholds: [50%, 80%, 90%, 100%]}
      gpu_seconds: {included: 1500.5, cap: 3000.25, on_cap: warn, thresholds: [75%, 100%]}
      context: {thresholds: [100000, 190000]}
customers: {}
"""


def catalog() -> Catalog:
    """What `CATALOG_YAML` says, as a value."""

    def percents(*numbers: int) -> tuple[Threshold, ...]:
        return tuple(Threshold(percent=Decimal(number)) for number in numbers)

    limit = partial(Limit, max_lag=MAX_LAG)
    uncached = Filter("and", (Condition("cached", "equals", False),))
    limits = {
        "tokens_in": limit(cap=Decimal(400_000), thresholds=percents(50, 80, 100)),
        "tokens_out": limit(included=Decimal(100_000), on_cap="allow", thresholds=percents(80, 100)),
        "requests": limit(cap=Decimal(600), thresholds=percents(50, 80, 90, 100)),
        "gpu_seconds": limit(
            included=Decimal("1500.5"), cap=Decimal("3000.25"), on_cap="warn", thresholds=percents(75, 100)
        ),
        "context": limit(
            thresholds=(Threshold(absolute=Decimal(100_000)), Threshold(absolute=Decimal(190_000)))
        ),
    }
    return Catalog(
        meters=(
            Meter("tokens_in", "llm.completion", "sum", "input_tokens", uncached, "tokens"),
            Meter("tokens_out", "llm.completion", "sum", "output_tokens", unit="tokens"),
            Meter("requests", "llm.completion", "count", unit="requests"),
            Meter("gpu_seconds", "gpu.job", "sum", "seconds", unit="seconds"),
            Meter("context", "llm.session", "max", "context", unit="tokens"),
        ),
        plans={"standard": Plan("standard", limits=limits)},
        default_plan="standard",
    )


@dataclass(frozen=True)
class Workload:
    """What decides the bytes. `events` are lines, repeats included; shares are of lines."""

    events: int = 2_000_000
    keys: int = 10_000
    zipf: float = 1.0
    start: str = "2026-10-31T22:00:00Z"
    span_s: int = 4 * 3600
    duplicates: float = 0.01
    out_of_order: float = 0.02
    late: float = 0.001
    offsets: float = 0.0
    parts: int = 2
    seed: int = 1

    @property
    def customers(self) -> int:
        return max(1, self.keys // len(METERS))

    @property
    def events_min(self) -> int:
        """So many lines it takes that each key is active."""
        return ceil(self.customers * KINDS / (1 - self.duplicates))

    @property
    def name(self) -> str:
        """A directory's name: what a reader wants to know, and a hash of the whole."""
        content = json.dumps([VERSION, CATALOG_YAML, asdict(self)], sort_keys=True)
        return f"events-{self.events}-keys-{self.keys}-{sha256(content.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Dataset:
    """A written workload: `whole` in one file, and the same lines split by customer into `parts`."""

    directory: Path
    whole: Path
    parts: tuple[Path, ...]
    part_events: tuple[int, ...]
    catalog: Path
    events: int
    bytes: int

    @property
    def glob(self) -> str:
        return str(self.directory / "part-*.ndjson")


@dataclass(frozen=True)
class _Columns:
    """The distinct events, and `order`: which of them each line is."""

    order: NDArray[np.int64]
    ids: NDArray[np.uint64]
    customer: NDArray[np.int64]
    kind: NDArray[np.int64]
    at_ms: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    flag: NDArray[np.bool_]
    offset: NDArray[np.bool_]


def generate(workload: Workload, directory: Path) -> Dataset:
    """The data set in a subdirectory of `directory`, written unless it is there already."""
    target = directory / workload.name
    manifest = target / "manifest.json"
    if not _is_complete(manifest):
        target.mkdir(parents=True, exist_ok=True)
        (target / "catalog.yaml").write_text(CATALOG_YAML)
        _write(workload, target)
    content = json.loads(manifest.read_text())
    files = content["files"]
    parts = sorted(name for name in files if name.startswith("part-"))
    return Dataset(
        directory=target,
        whole=target / "all.ndjson",
        parts=tuple(target / name for name in parts),
        part_events=tuple(files[name]["events"] for name in parts),
        catalog=target / "catalog.yaml",
        events=files["all.ndjson"]["events"],
        bytes=files["all.ndjson"]["bytes"],
    )


def _is_complete(manifest: Path) -> bool:
    if not manifest.exists():
        return False
    files = json.loads(manifest.read_text())["files"]
    paths = {manifest.parent / name: file["bytes"] for name, file in files.items()}
    return all(path.exists() and path.stat().st_size == size for path, size in paths.items())


def _balanced(customer: NDArray[np.int64], workload: Workload) -> NDArray[np.int64]:
    """The part that each customer's events go to, so that parts have about as many each."""
    events = np.bincount(customer, minlength=workload.customers)
    part_of = np.zeros(len(events), np.int64)
    loads = [0] * workload.parts
    for number in np.argsort(-events, kind="stable").tolist():
        part_of[number] = lightest = loads.index(min(loads))
        loads[lightest] += int(events[number])
    return part_of


def _write(workload: Workload, target: Path) -> None:
    columns = _draw(workload)
    names = [f"cust-{number:06d}" for number in range(workload.customers)]
    part_of = _balanced(columns.customer[columns.order], workload)
    outs = {"all.ndjson": (target / "all.ndjson").open("wb")}
    for part in range(workload.parts if workload.parts > 1 else 0):
        outs[f"part-{part}.ndjson"] = (target / f"part-{part}.ndjson").open("wb")
    counts = dict.fromkeys(outs, 0)
    for begin in range(0, len(columns.order), CHUNK):
        rows = columns.order[begin : begin + CHUNK]
        lines = _lines(columns, rows, names)
        parts = part_of[columns.customer[rows]]
        for number, name in enumerate(outs, start=-1):
            own = lines if number < 0 else [lines[i] for i in np.flatnonzero(parts == number).tolist()]
            counts[name] += len(own)
            _put(outs[name], own)
    files = {}
    for name, out in outs.items():
        files[name] = {"events": counts[name], "bytes": out.tell()}
        out.close()
    content: dict[str, Any] = {"version": VERSION, "workload": asdict(workload), "files": files}
    content["distinct"] = len(columns.ids)
    (target / "manifest.json").write_text(json.dumps(content, indent=2))


def _put(out: BinaryIO, lines: list[str]) -> None:
    if lines:
        out.write(("\n".join(lines) + "\n").encode())


def _draw(workload: Workload) -> _Columns:
    rng = np.random.default_rng(workload.seed)
    repeats = round(workload.events * workload.duplicates)
    n = workload.events - repeats
    customer, kind, forced = _who_and_what(workload, n, rng)
    start = int(datetime.fromisoformat(workload.start).astimezone(UTC).timestamp() * 1000)
    arrival = np.sort(rng.integers(0, workload.span_s * 1000, n))
    behind = np.zeros(n, np.int64)
    luck = rng.random(n)
    late = luck < workload.late
    behind[late] = rng.integers(_ms(LATE[0]), _ms(LATE[1]), int(late.sum()))
    disordered = ~late & (luck < workload.late + workload.out_of_order)
    behind[disordered] = rng.integers(0, _ms(OUT_OF_ORDER_MAX), int(disordered.sum()))
    repeated = rng.choice(n, repeats, replace=False)
    again = arrival[repeated] + rng.integers(0, _ms(REPEAT_MAX), repeats)
    order = np.concatenate([np.arange(n), repeated])
    order = order[np.argsort(np.concatenate([arrival, again]), kind="stable")]
    return _Columns(
        order=order,
        ids=_scrambled(n, workload.seed),
        customer=customer,
        kind=kind,
        at_ms=start + arrival - behind,
        first=_quantities(kind, n, rng),
        second=np.minimum(rng.lognormal(4.8, 1.0, n).astype(np.int64) + 1, 4000),
        flag=(rng.random(n) < 0.25) & ~forced,
        offset=rng.random(n) < workload.offsets,
    )


def _who_and_what(
    workload: Workload, n: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Customer and kind of each event, and which events are there so that every key has one."""
    customers = workload.customers
    weights = np.arange(1, customers + 1) ** -workload.zipf
    ranks = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(n))
    customer = rng.permutation(customers)[np.minimum(ranks, customers - 1)].astype(np.int64)
    kind = np.searchsorted(np.cumsum(SHARES)[:-1], rng.random(n), side="right").astype(np.int64)
    forced = np.zeros(n, np.bool_)
    if customers * KINDS <= n:
        places = rng.choice(n, customers * KINDS, replace=False)
        customer[places] = np.repeat(np.arange(customers), KINDS)
        kind[places] = np.tile(np.arange(KINDS), customers)
        forced[places] = True
    return customer, kind, forced


def _quantities(kind: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Input tokens of a completion, thousandths of a second of a job, context of a session."""
    tokens = np.minimum(rng.lognormal(6.2, 1.0, n).astype(np.int64) + 1, 32_000)
    context = rng.integers(100, 200_000, n)
    return np.where(kind == JOB, rng.integers(1, 30_000, n), np.where(kind == SESSION, context, tokens))


def _scrambled(n: int, seed: int) -> NDArray[np.uint64]:
    """Distinct numbers without order: splitmix64's finalizer is a bijection."""
    x = np.arange(n, dtype=np.uint64) + np.uint64(seed << 40)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _ms(length: timedelta) -> int:
    return length // timedelta(milliseconds=1)


def _lines(columns: _Columns, rows: NDArray[np.int64], names: list[str]) -> list[str]:
    offset = columns.offset[rows]
    shown = columns.at_ms[rows] + np.where(offset, 2 * 3_600_000, 0)
    times = np.datetime_as_string(shown.astype("datetime64[ms]"), unit="ms").tolist()
    zones = np.where(offset, "+02:00", "Z").tolist()
    return [
        f'{{"specversion":"1.0","id":"evt-{number:016x}","source":"/gateway/{REGIONS[number & 3]}","type":"'
        + _tail(kind, names[customer], time, zone, MODELS[number >> 2 & 3], first, second, flag)
        for number, customer, kind, time, zone, first, second, flag in zip(
            columns.ids[rows].tolist(),
            columns.customer[rows].tolist(),
            columns.kind[rows].tolist(),
            times,
            zones,
            columns.first[rows].tolist(),
            columns.second[rows].tolist(),
            columns.flag[rows].tolist(),
            strict=True,
        )
    ]


def _tail(
    kind: int, customer: str, time: str, zone: str, model: str, first: int, second: int, flag: bool
) -> str:
    if kind == COMPLETION:
        return (
            f'llm.completion","subject":"{customer}","time":"{time}{zone}","data":{{"model":"{model}",'
            f'"input_tokens":{first},"output_tokens":{second},"cached":{"true" if flag else "false"}}}}}'
        )
    if kind == JOB:
        return (
            f'gpu.job","subject":"{customer}","time":"{time}{zone}","data":{{"model":"{model}",'
            f'"seconds":{first // 1000}.{first % 1000:03d},"device":"h100-80g",'
            f'"queue":"batch-{second & 7}"}}}}'
        )
    return (
        f'llm.session","subject":"{customer}","time":"{time}{zone}","data":{{"model":"{model}",'
        f'"context":{first},"turns":{second},"stream":{"true" if flag else "false"}}}}}'
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that choose a workload, as every benchmark command has them."""
    default = Workload()
    parser.add_argument("--events", type=int, default=default.events, help="lines, repeats included")
    parser.add_argument(
        "--keys", type=int, default=default.keys, help="active keys: customers times 5 meters"
    )
    parser.add_argument("--zipf", type=float, default=default.zipf, help="skew of the customers, 0 for none")
    parser.add_argument("--span-s", type=int, default=default.span_s, help="event time from first to last")
    parser.add_argument("--start", default=default.start, help="event time of the first, RFC 3339")
    parser.add_argument("--parts", type=int, default=default.parts, help="files to split into by customer")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--dir", type=Path, default=Path("/tmp/tidegate-benchmarks"), help="where data is kept"
    )


def workload_of(arguments: argparse.Namespace) -> Workload:
    """The workload that the options of `add_arguments` ask for."""
    return Workload(
        events=arguments.events,
        keys=arguments.keys,
        zipf=arguments.zipf,
        start=arguments.start,
        span_s=arguments.span_s,
        parts=arguments.parts,
        seed=arguments.seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    dataset = generate(workload_of(arguments), arguments.dir)
    print(f"{dataset.whole}: {dataset.events:,} events, {dataset.bytes / dataset.events:.0f} bytes each")
    for path, events in zip(dataset.parts, dataset.part_events, strict=True):
        print(f"{path}: {events:,} events")


if __name__ == "__main__":
    main()
