"""The catalog's versions as a process knows them: applied whole or not at all, read once, then at hand.

The store's control log keeps the versions (operators/model/ports.py). A catalog file is applied as the next version
when it says something else than it did when it was last applied, so what was changed through the API since stays.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from time import monotonic

from tidegate.operators.model.catalog import NO_CATALOG, Meter, VersionedCatalog
from tidegate.operators.model.ports import CatalogConflict, CatalogVersion, ControlLog
from tidegate.settings.catalog.file import CatalogError, Problem, is_at_hand, parse_catalog, read_text
from tidegate.settings.catalog.last_applied import LastApplied
from tidegate.settings.catalog.meter_history import check_meters, definitions, note_counted

_LOG = logging.getLogger("tidegate.catalog")

KEPT = 16
# How many versions that can't be used are passed over; no door has taken one since the check is of all versions.
TRIED = 100
SETTLED = 0.3


class CatalogFollower:
    """Versions of the control log. `current` is the newest that can be used and never goes back; `get` gives any.

    A version can't be used that cannot be read, or whose meters can't go on with what was counted: `problem` says why,
    and the last good one stays in force. Without one, number 0 is what `in_force` has noted, else empty.
    """

    def __init__(self, log: ControlLog, in_force: LastApplied | None = None) -> None:
        self._log = log
        self._in_force = in_force
        self._known: dict[int, VersionedCatalog] = {}
        # Worker threads of one process share it.
        self._lock = Lock()
        self._newest = self._looked = 0
        self.problem = self.file_problem = ""
        self._coming: CatalogVersion | None = None
        if in_force is not None:
            note_counted(log, in_force.noted.meters)
        with self._lock:
            self._look(log.catalog_number())

    def follow(self) -> VersionedCatalog:
        """Ask the log for a newer version, and return the one to go by.

        A large one is parsed on a thread, and taken up by a later call.
        """
        with self._lock:
            number = self._log.catalog_number()
            if number > self._looked and is_at_hand(self._version(number).text):
                self._look(number)
        return self.current

    @property
    def problems(self) -> str:
        """Why the catalog file, or the newest version, is not what is gone by; empty where it is."""
        return "; ".join(filter(None, (self.file_problem, self.problem)))

    def save(self) -> None:
        """Write what is in force beside the state, whose folder exists."""
        if self._in_force is not None:
            self._in_force.save()

    def remember(self, meters: Sequence[Meter]) -> None:
        """Note what a shard's state has counted, which stands above all that catalogs say."""
        with self._lock:
            if self._in_force is not None and self._in_force.counts(definitions(meters)):
                note_counted(self._log, self._in_force.noted.meters)

    @property
    def current(self) -> VersionedCatalog:
        """The version to go by."""
        return self.get(self._newest)

    def get(self, number: int) -> VersionedCatalog:
        """Return the version of this number. CatalogError where it needs a later Tidegate to be read."""
        with self._lock:
            return self._known.get(number) or self._know(number)

    def _know(self, number: int) -> VersionedCatalog:
        found = self._known[number] = self._read(number)
        for old in sorted(self._known)[:-KEPT]:
            del self._known[old]
        return found

    def _read(self, number: int) -> VersionedCatalog:
        if number:
            return parse_version(self._version(number))
        text = self._in_force.noted.text if self._in_force else ""
        if not text:
            return NO_CATALOG
        catalog = parse_catalog(text, "the catalog noted beside the state", is_applied=True)
        return VersionedCatalog(0, catalog)

    def _version(self, number: int) -> CatalogVersion:
        if self._coming is None or self._coming.number != number:
            self._coming = self._log.catalog(number)
        if self._coming is None:
            raise CatalogError([Problem(f"catalog version {number}", 0, 0, "", "is no longer in the store")])
        return self._coming

    def _look(self, number: int) -> None:
        """Goes by the newest version up to this one that can be used."""
        self.problem, self._looked = "", number
        for tried in range(number, max(self._newest, number - TRIED), -1):
            try:
                catalog = (self._known.get(tried) or self._know(tried)).catalog
                check_meters(self._log, number, catalog, f"catalog version {tried}")
            except CatalogError as error:
                self.problem = self.problem or str(error)
                continue
            self._newest = tried
            if self._in_force is not None:
                self._in_force.note(self._version(tried).text, definitions(catalog.meters))
                note_counted(self._log, self._in_force.noted.meters)
            break
        self._coming = None
        if self.problem:
            _LOG.error("the catalog stays at version %d: %s", self._newest, self.problem)


def parse_version(version: CatalogVersion) -> VersionedCatalog:
    """Parse a version as it was applied. CatalogError where it needs a later Tidegate to be read."""
    catalog = parse_catalog(version.text, f"catalog version {version.number}", is_applied=True)
    return VersionedCatalog(version.number, catalog, version.applied_at, version.origin)


def apply_text(
    log: ControlLog,
    text: str,
    *,
    origin: str,
    by: str,
    note: str = "",
    expected: int | None = None,
    name: str = "",
) -> CatalogVersion:
    """Validate `text` and make it the next version.

    CatalogError where it is wrong, or changes what a meter has counted; CatalogConflict where `expected` is not the
    newest number any more.
    """
    catalog = parse_catalog(text, name or "catalog")
    number = log.catalog_number()
    check_meters(log, number, catalog, name or "catalog")
    if expected is not None and expected != number:
        raise CatalogConflict(number)
    return log.apply(text, origin=origin, by=by, note=note, expected=number)


def apply_file(log: ControlLog, path: Path) -> CatalogVersion | None:
    """Apply the catalog file if it changed since it was last applied; return the newest version.

    Several processes may start at once: who comes second finds it applied. Without a file, what the log has stands.
    """
    newest = log.catalog()
    if newest is not None and not path.exists():
        return newest
    text = read_text(path)
    while True:
        last = _last_of_file(log, newest)
        if last is not None and last.text == text:
            return newest
        try:
            number = newest.number if newest is not None else 0
            return apply_text(log, text, origin="file", by=str(path), expected=number, name=str(path))
        except CatalogConflict:
            newest = log.catalog()


def _last_of_file(log: ControlLog, newest: CatalogVersion | None) -> CatalogVersion | None:
    version = newest
    while version is not None and version.origin != "file":
        version = log.catalog(version.number - 1) if version.number > 1 else None
    return version


class FileWatch:
    """Applies the catalog file when it changes. `look` is cheap enough to call often: it asks for size and time.

    A file that still grows may be a valid catalog by chance, so it is applied when it has been the same for SETTLED.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic, problem: str = "") -> None:
        self._path = path
        self.problem = problem
        self._clock = clock
        self._applied = self._seen = self._mark()
        self._since = clock()

    def look(self, log: ControlLog) -> str:
        """Return why the file can't be applied, which leaves the catalog as it is; empty where it was."""
        mark, now = self._mark(), self._clock()
        if mark != self._seen:
            self._seen, self._since = mark, now
        if mark == self._applied or now - self._since < SETTLED:
            return self.problem
        try:
            if mark is not None and not is_at_hand(read_text(self._path)):
                return self.problem
            self.problem = ""
            apply_file(log, self._path)
        except CatalogError as error:
            self.problem = str(error)
            _LOG.error("the catalog stays as it is: %s", error)
        self._applied = mark
        return self.problem

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
