"""A flow on a folder of its own, the changes that befall it, and what has to hold after each of them."""

import base64
import json
import random
import re
import shutil
import signal
import time
from collections import Counter
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.faults.changes.forks import Forks, Process, Start
from tests.faults.changes.oracle import MINUTE, Bounds, Oracle, Sent
from tests.faults.changes.traffic import DAY, METERS, Catalogs, Edition, Events
from tests.faults.support.edges import lines_of
from tests.faults.support.harness import fallen
from tidegate.connectors.sqlite.control import SqliteControl
from tidegate.connectors.sqlite.store import SqliteReader
from tidegate.operators.model.ports import Adjustment, ControlConflict, StoredTotal
from tidegate.operators.model.records import Total

PATIENCE = 90.0
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+ [A-Z]+ ")
DURATION = {
    "0": 0,
    "5m": 5 * MINUTE,
    "1h": 60 * MINUTE,
    "6h": 360 * MINUTE,
    "1d": DAY,
    "3d": 3 * DAY,
    "35d": 35 * DAY,
}
STREAMS = ("a", "b", "log")
Window = tuple[Any, ...]


class Fault(AssertionError):
    """What must not be."""


@dataclass
class Saved:
    """A copy of everything, and what was known then."""

    oracle: Oracle
    read: dict[str, int]
    windows: dict[Window, Total]
    adjustments: dict[str, Adjustment]
    applied: dict[str, Adjustment]
    settings: dict[str, str]
    gone: dict[tuple[str, str, str], Fraction]
    gone_adjusted: Counter[tuple[str, str]]
    editions: dict[str, Edition]


@dataclass
class World:
    """The folder, the flow's settings, and the oracle."""

    folder: Path
    rng: random.Random
    forks: Forks
    settings: dict[str, str] = field(default_factory=dict)
    ahead: int = 0
    starts: int = 0
    story: list[str] = field(default_factory=list)
    sent: dict[str, list[list[Sent]]] = field(default_factory=lambda: {name: [] for name in STREAMS})
    read: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    windows: dict[Window, Total] = field(default_factory=dict)
    gone: dict[tuple[str, str, str], Fraction] = field(default_factory=dict)
    gone_adjusted: Counter[tuple[str, str]] = field(default_factory=Counter)
    adjustments: dict[str, Adjustment] = field(default_factory=dict)
    applied: dict[str, Adjustment] = field(default_factory=dict)
    saved: Saved | None = None
    lost: bool = False
    file_refused: bool = False
    was_lost: bool = False
    door: Any = None

    def __post_init__(self) -> None:
        self.events, self.catalogs = Events(self.rng), Catalogs(self.rng)
        self.settings = {
            "SOURCE": "file:[ab].ndjson", "LATENESS": "1d", "CLOCK": "auto", "FUTURE": "5m", "SHARDS": "4",
            "ALERTS": "file:alerts.ndjson", "DEAD_LETTERS": "file:dead.ndjson", "EPOCH": "1s", "STORE_ASIDE": "0",
            "SYNC": "false", "COALESCE": "3ms",
        }  # fmt: skip
        self.edition = self.adopted = self.catalogs.editions[0]
        self.editions = {self.edition.text: self.edition}
        (self.folder / "catalog.yaml").write_text(self.edition.text)
        for name in "ab":
            (self.folder / f"{name}.ndjson").touch()
        self.oracle = Oracle(Bounds(DURATION["1d"], DURATION["5m"]))

    # The clock

    def now(self) -> int:
        """What the product's wall clock shows, in µs."""
        return int((time.time() + self.ahead) * 1_000_000)

    def set_clock(self, ahead: int) -> None:
        self.note_wall()
        self.ahead = ahead
        self.forks.set_clock(ahead)
        self.note_wall()

    def note_wall(self) -> None:
        """Let the oracle know what the wall clock may have shown, if it counts."""
        if self.settings["CLOCK"] == "wall" or "log:" in self.settings["SOURCE"]:
            bounds = self.oracle.bounds
            bounds.wall_max = max(bounds.wall_max, self.now())
            bounds.wall_min = min(bounds.wall_min, self.now())

    # Processes

    @property
    def store(self) -> Path:
        return self.folder / "data" / "tidegate.db"

    def start(self, **settings: str) -> Process:
        """Start the flow."""
        self.starts += 1
        given = {f"TIDEGATE_{name}": text for name, text in (self.settings | settings).items()}
        given |= {"BYTEWAX_RECOVERY_DIRECTORY": "data/recovery", "BYTEWAX_SNAPSHOT_INTERVAL": "1"}
        given["BYTEWAX_RECOVERY_BACKUP_INTERVAL"] = "0"
        said = f"said-{self.starts:03}"
        self.note_wall()
        return self.forks.start(
            Start("bytewax.run", ["tidegate.flows.metering"], str(self.folder), given, said)
        )

    def ended(self, process: Process, *allowed: int) -> int:
        """Wait for its end and return the exit code: one that is allowed, or 1 with one line that says why."""
        code = process.wait(PATIENCE)
        self.note_wall()
        words = process.words()
        if code is None:
            process.send(signal.SIGKILL)
            raise Fault(f"the flow does not end: {words[-2000:]}")
        for bad in ("Traceback", "panicked", "AssertionError"):
            if bad in words:
                raise Fault(f"{bad} at an exit with {code}: {words[-3000:]}")
        if code not in allowed:
            lines = [line for line in words.splitlines() if line.strip() and not LOG_LINE.match(line)]
            lines += [line for line in words.splitlines() if "the flow ends:" in line]
            if code != 1 or len(lines) != 1:
                raise Fault(f"exit {code}, not refused with one line: {words[-3000:]}")
        return code

    def refused(self, **settings: str) -> None:
        """Start it with what must be refused."""
        process = self.start(**settings)
        if self.ended(process, 0) == 0:
            raise Fault(f"{settings} is not refused")

    def run(self) -> None:
        """Run it to the end of its input, perhaps killed and started again."""
        while self.rng.random() < 0.3:
            process = self.start()
            seconds = self.rng.random() * 1.5
            how = self.rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
            if process.wait(seconds) is None:
                self.story.append(f"{how.name} after {seconds:.2f} s")
                process.send(how)
            self.ended(process, 0, -how, 1)
        process = self.start()
        if self.ended(process, 0) != 0:
            raise Fault(f"the flow refuses to start: {process.words()[-2000:]}")
        self.check()

    # What is put before it

    def send(self, count: int) -> None:
        """Append events to the files, each customer's to one of them."""
        waiting: dict[str, list[Sent]] = {"a": [], "b": []}
        for each in self.events.elements(count, self.now()):
            waiting[stream_of(each.customer)].append(each)
        for stream, elements in waiting.items():
            blocks = []
            while elements:
                size = self.rng.choice((1, 1, 1, 2, 5))
                taken, elements = elements[:size], elements[size:]
                groups = [[each] for each in taken] if any(e.reason == "not_json" for e in taken) else [taken]
                self.sent[stream] += groups
                blocks += [self.events.payload(group) for group in groups]
            with (self.folder / f"{stream}.ndjson").open("ab") as file:
                file.write(b"".join(block + self.rng.choice((b"\n", b"\r\n", b"\n\n")) for block in blocks))

    def adjust(self, record: Adjustment) -> None:
        """Append a control record, as reconciliation does."""
        if not self.store.exists():
            return
        with closing(SqliteControl(self.store)) as log:
            try:
                log.append(record)
            except ControlConflict:
                return
        self.adjustments.setdefault(record.id, record)

    # What has to hold

    def streams(self) -> list[str]:
        """The streams that the source has."""
        source = self.settings["SOURCE"]
        return (
            ["log"]
            if "log:" in source
            else [name for name in "ab" if name in source.split("?")[0].removeprefix("file:")]
        )

    def pending(self) -> int:
        """How many events wait to be read."""
        return sum(
            len(self._elements(line))
            for name in self.streams()
            for line in self.sent[name][self.read[name] :]
        )

    def _elements(self, line: list[Sent]) -> list[Sent]:
        """The events of a line as the flow reads it."""
        payload = self.events.payload(line)
        limit = int(self.settings.get("PAYLOAD_BYTES_MAX", "1048576"))
        return [Sent(payload, "too_large")] if len(payload) > limit else line

    def counted_events(self) -> int:
        """How many events the store's counters have."""
        with closing(SqliteReader(self.store)) as reader:
            return sum(counter.value for counter in reader.counters() if counter.name == "events")

    def check_input(self) -> None:
        """Account for what was read so far, while the flow runs and has read it all."""
        self.note_wall()
        dead = self.dead()
        for name in self.streams():
            lines = self.sent[name][self.read[name] :]
            elements = [each for line in lines for each in self._elements(line)]
            self.oracle.take(name, elements, self.edition.meters, dead)
            self.read[name] = len(self.sent[name])
        self.oracle.finish(dead)
        if self.oracle.wrong:
            raise Fault("\n".join(self.oracle.wrong[:5]))

    def dead(self) -> Counter[tuple[str, bytes]]:
        """All dead letters, by reason and payload."""
        found: Counter[tuple[str, bytes]] = Counter()
        for line in lines_of(self.folder / "dead.ndjson"):
            letter = json.loads(line)
            text = letter.get("payload")
            found[
                letter["reason"],
                base64.b64decode(letter["payload_base64"]) if text is None else text.encode(),
            ] += 1
        return found

    def adopt_in_force(self) -> None:
        """Take over the catalog that the store has as the newest."""
        with closing(SqliteControl(self.store)) as log:
            version = log.catalog()
        # A store that is new has none where the file is wrong: the last good one is noted beside the state.
        text = self.adopted.text if version is None else version.text
        if version is not None and version.origin == "api":
            # A limit was set in it, by an edit that keeps all the rest.
            self.editions.setdefault(text, Edition(text, self.adopted.meters))
        if text not in self.editions:
            raise Fault(f"a catalog is in force that nobody applied: {text[:300]}")
        edition = self.editions[text]
        if self.edition.text != edition.text:
            # A file that was refused is so again at each start, also on a backup that has another one in force.
            self.file_refused |= self.edition.may_be_refused
            if not self.file_refused:
                raise Fault(f"a catalog was refused: {self.edition.text}")
        if not edition.meters:
            raise Fault(f"a wrong catalog is in force: {edition.text}")
        self.edition = self.adopted = edition
        self.catalogs.adopt(edition)

    def check(self) -> None:
        """Compare everything with what must be, all input having been read."""
        self.adopt_in_force()
        self.check_input()
        with closing(SqliteReader(self.store)) as reader:
            counters: Counter[str] = Counter()
            for counter in reader.counters():
                counters[counter.name] += counter.value
            stored = list(reader.totals())
            notes = reader.notes("adjustment", None, 100_000)
        self._check_counters(counters)
        self._check_windows(stored)
        self._check_adjustments([json.loads(note.body) for note in notes])
        self._check_sums()

    def _check_counters(self, counters: Counter[str]) -> None:
        ends = ("rejects", "too_late", "duplicates", "conflicts", "accepted")
        if counters["events"] != sum(counters[name] for name in ends):
            raise Fault(f"counters do not balance: {counters}")
        if counters["accepted"] != counters["metered"] + counters["unmetered"]:
            raise Fault(f"accepted is not metered + unmetered: {counters}")
        for name, value in counters.items():
            meter = name.removeprefix("matching:")
            if meter != name and value != counters[f"counted:{meter}"] + counters[f"corrected:{meter}"]:
                raise Fault(f"{name} is not counted + corrected: {counters}")
        if self.oracle.unsure:
            return
        wanted = +self.oracle.counters
        if wrong := {
            name: (counters[name], wanted[name]) for name in wanted if counters[name] != wanted[name]
        }:
            raise Fault(f"counters (found, wanted): {wrong}")

    def _check_windows(self, stored: list[StoredTotal]) -> None:
        """No total falls for a reader, and none is gone unless the store was lost and the window is over."""
        before, self.windows = self.windows, {one.total[:4]: one.total for one in stored}
        latest = max([self.oracle.bounds.wall_max, *self.oracle._now.values(), self.now()])
        seen: dict[Window, Total] = {}
        for key, total in before.items():
            now = self.windows.get(key)
            length = total.end - total.start
            is_over = total.end + (length if now else 0) < latest
            if now is None or (
                now.version > total.version and _value(now) < _value(total) and is_over and now.steady
            ):
                if now is None and not self.lost:
                    raise Fault(f"a total is gone: {total}")
                if not is_over:
                    raise Fault(f"a total of a window that is held is gone: {total}, now {now}")
                self._let_go(total)
            elif not self.lost:
                seen[key] = total
        wrong = [each for one in stored for each in fallen(seen, one)]
        if wrong:
            raise Fault(f"a total fell: {wrong[:3]}")
        for total in self.windows.values():
            if total.steady and Fraction(total.total) < 0:
                raise Fault(f"negative, though nothing was adjusted: {total}")
        self.lost = False

    def _let_go(self, total: Total) -> None:
        key = total.window, total.customer, total.meter
        self.gone[key] = self.gone.get(key, Fraction(0)) + _value(total)
        if total.window == "period":
            self.gone_adjusted[key[1:]] += Fraction(total.adjustment)  # type: ignore[assignment]

    def _check_adjustments(self, notes: list[dict[str, Any]]) -> None:
        """Each was applied or refused with a note, and what is plain is never refused."""
        answered = {note["id"]: note for note in notes}
        for id, record in list(self.adjustments.items()):
            note = answered.get(id)
            if note is None:
                raise Fault(f"an adjustment was neither applied nor refused: {record}")
            if note.get("refused") is None:
                self.applied[id] = record
            elif record.reason == "plain" and "held" not in note["refused"]:
                raise Fault(f"a plain adjustment was refused: {note['refused']}: {record}")
            del self.adjustments[id]

    def _check_sums(self) -> None:
        """The windows of each kind hold each reading once."""
        kinds = {meter.name: meter.kind for meter in METERS}
        found: dict[tuple[str, str, str], Fraction] = dict(self.gone)
        adjusted = self.gone_adjusted.copy()
        for total in self.windows.values():
            key = total.window, total.customer, total.meter
            found[key] = found.get(key, Fraction(0)) + _value(total)
            if total.window == "period":
                adjusted[total.customer, total.meter] += Fraction(total.adjustment)  # type: ignore[assignment]
        for (window, customer, meter), value in found.items():
            wanted = self.oracle.sums.get((customer, meter), Fraction(0))
            if kinds[meter] in ("count", "sum") and customer not in self.oracle.unsure and value != wanted:
                raise Fault(f"{window} totals of {customer!r} {meter}: {value} instead of {wanted}")
        for customer, meter in self.oracle.sums:
            if kinds[meter] in ("count", "sum") and ("period", customer, meter) not in found:
                raise Fault(f"no total of {customer!r} {meter}")
        wanted_adjustments: Counter[tuple[str, str]] = Counter()
        for record in self.applied.values():
            wanted_adjustments[record.customer, record.meter] += Fraction(record.quantity)  # type: ignore[assignment]
        for pair in adjusted.keys() | wanted_adjustments.keys():
            if adjusted[pair] != wanted_adjustments[pair]:
                raise Fault(f"adjustments of {pair}: {adjusted[pair]} instead of {wanted_adjustments[pair]}")

    def close(self) -> None:
        """End the service, if there is one, in order."""
        if self.door is not None:
            self.door.close()

    def leave_door(self) -> None:
        """End the service, which says that it has to be started again once its store is another file."""
        self.close()
        self.door = None

    def abandon(self) -> None:
        """Leave nothing open."""
        if self.door is not None:
            self.door.abandon()

    # Stores that are lost, and backups

    def lose_store(self) -> None:
        self.leave_door()
        for path in self.folder.glob("data/tidegate.db*"):
            path.unlink()
        self.lost = self.was_lost = True
        self.adjustments.clear()
        self.editions = {each.text: each for each in (self.edition, self.adopted)}
        self.catalogs.editions = [self.edition]

    def save(self) -> None:
        """Copy the folder of the flow, which does not run."""
        shutil.rmtree(self.folder / "backup", ignore_errors=True)
        shutil.copytree(self.folder / "data", self.folder / "backup")
        self.saved = Saved(
            deepcopy(self.oracle), dict(self.read), dict(self.windows), dict(self.adjustments), dict(self.applied),
            dict(self.settings), dict(self.gone), self.gone_adjusted.copy(), dict(self.editions),
        )  # fmt: skip

    def restore(self) -> None:
        """Put the copy back; the inputs and the catalog file stay as they are."""
        assert self.saved is not None
        self.leave_door()
        shutil.rmtree(self.folder / "data")
        shutil.copytree(self.folder / "backup", self.folder / "data")
        saved = self.saved
        bounds = self.oracle.bounds
        self.oracle = deepcopy(saved.oracle)
        self.oracle.bounds = bounds
        # A store that was lost in between had none of the versions that the copy has.
        self.editions |= saved.editions
        self.read, self.windows = dict(saved.read), dict(saved.windows)
        self.adjustments, self.applied, self.gone = (
            dict(saved.adjustments),
            dict(saved.applied),
            dict(saved.gone),
        )
        for name in ("SHARDS", "SOURCE", "DEAD_LETTERS"):
            self.settings[name] = saved.settings[name]
        self.saved = None

    def set_catalog(self, edition: Edition) -> None:
        self.editions.setdefault(edition.text, edition)
        self.edition, self.file_refused = edition, False
        replaced = self.folder / "catalog.new"
        replaced.write_text(edition.text)
        replaced.replace(self.folder / "catalog.yaml")


def stream_of(customer: str) -> str:
    """The file that has a customer's events."""
    return "ab"[sum(customer.encode()) % 2]


def _value(total: Total) -> Fraction:
    """What events made of a total."""
    return Fraction(total.total) - Fraction(total.adjustment)
