"""The catalog's versions as a process knows them: applied whole or not at all, read once, then at hand.

The store's control log keeps the versions (operators/ports.py). A catalog file is applied as the next version when it
says something else than it did when it was last applied, so what was changed through the API since stays.
"""

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from time import monotonic

from operators.catalog import Catalog, meter_clash
from operators.ports import CatalogConflict, CatalogVersion, ControlLog
from settings.catalog import CatalogError, Problem, parse_catalog, read_text

KEPT = 16
SETTLED = 0.3


class Catalogs:
    """Versions by number. `newest` never goes back; `get` gives any of them, parsed once."""

    def __init__(self, log: ControlLog) -> None:
        self._log = log
        self._known: dict[int, Catalog] = {}
        # Worker threads of one process share it.
        self._lock = Lock()
        self.newest = 0
        self.follow()

    def follow(self) -> int:
        """Asks the log for the newest number."""
        with self._lock:
            self.newest = max(self._log.catalog_number(), self.newest)
        return self.newest

    @property
    def current(self) -> Catalog:
        """The newest catalog; an empty one before the first version."""
        return self.get(self.newest)

    def get(self, number: int) -> Catalog:
        """The catalog of this number. CatalogError where it needs a later Tidegate to be read."""
        if number == 0:
            return Catalog()
        with self._lock:
            found = self._known.get(number) or self._read(number)
            self._known[number] = found
            for old in sorted(self._known)[:-KEPT]:
                del self._known[old]
            self.newest = max(number, self.newest)
        return found

    def _read(self, number: int) -> Catalog:
        version = self._log.catalog(number)
        assert version is not None, f"catalog {number} is announced, but not there"
        return parse_catalog(version.text, f"catalog version {number}", is_applied=True)


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
    """Validates `text` and makes it the next version.

    CatalogError where it is wrong, or changes what a meter has counted; CatalogConflict where `expected` is not the
    newest number any more.
    """
    catalog = parse_catalog(text, name or "catalog")
    newest = log.catalog()
    if newest is not None:
        check_change(parse_catalog(newest.text, is_applied=True), catalog, name or "catalog")
    number = newest.number if newest is not None else 0
    if expected is not None and expected != number:
        raise CatalogConflict(number)
    return log.apply(text, origin=origin, by=by, note=note, expected=number)


def check_change(old: Catalog, new: Catalog, name: str) -> None:
    """CatalogError where a meter of `new` can't go on with what it has counted under `old`."""
    known = {meter.name: meter for meter in old.meters}
    clashes = [meter_clash(known[meter.name], meter) for meter in new.meters if meter.name in known]
    if problems := [Problem(name, 0, 0, "meters", clash) for clash in clashes if clash]:
        raise CatalogError(problems)


def apply_file(log: ControlLog, path: Path) -> CatalogVersion | None:
    """Applies the catalog file, if it says something else than when it was last applied. The newest version then.

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

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic) -> None:
        self._path = path
        self._clock = clock
        self._applied = self._seen = self._mark()
        self._since = clock()

    def look(self, log: ControlLog) -> str | None:
        """Why a changed file can't be applied, which leaves the catalog as it is; else None."""
        mark, now = self._mark(), self._clock()
        if mark != self._seen:
            self._seen, self._since = mark, now
        if mark == self._applied or now - self._since < SETTLED:
            return None
        self._applied = mark
        try:
            apply_file(log, self._path)
        except CatalogError as error:
            return str(error)
        return None

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
