"""The catalog that a gate decides by: the store's newest version, else the one it was given."""

from collections.abc import Callable
from threading import Event, Lock, Thread

from tidegate.operators.gate.customer_limits import CatalogLimits
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.ports import CatalogVersion, Holds, StoreError
from tidegate.serving.gate.tally import LOG
from tidegate.settings.catalog.file import CatalogError
from tidegate.settings.catalog.versions import parse_version

UNKNOWN = -1


class GateCatalog:
    """Follows the store's newest version. A version is read on a thread of its own, as it may be large.

    `bounds` is what decisions go by, None as long as no catalog is known. `problem` says why the newest version is
    not it, else it is empty. `changed` is called after each change of `bounds`.
    """

    def __init__(self, store: Holds, given: Catalog | None, changed: Callable[[], None]) -> None:
        self._store = store
        self._changed = changed
        self._given = CatalogLimits(given, 0) if given is not None else None
        self._lock = Lock()
        self._loading: Event | None = None
        self._lives = 0
        self._version: CatalogVersion | None = None
        self._number = UNKNOWN if given is None else 0
        self.bounds = self._given
        self.problem = ""

    def follow(self, number: int, patience: float) -> None:
        """Make the newest version the current one, if its `number` differs; wait at most `patience` seconds."""
        if number == self._number:
            return
        with self._lock:
            done = self._loading
            if done is None:
                done = self._loading = Event()
                Thread(target=self._load, args=(number, done), name="tidegate-catalog", daemon=True).start()
        done.wait(patience)

    def forget(self) -> None:
        """Forget the version's number: the store may be another one now."""
        self._lives += 1
        self._number = UNKNOWN

    def _load(self, number: int, done: Event) -> None:
        lives = self._lives
        try:
            self._take(number)
        except Exception as error:
            # Whatever it was, the old catalog goes on; unless its text is wrong, the next to ask tries again.
            why = error.problems[0] if isinstance(error, CatalogError) else error
            problem = f"the newest catalog cannot be used: {why}"
            if problem != self.problem:
                LOG.warning(problem)
            self.problem = problem
            if isinstance(error, StoreError):
                self._number = UNKNOWN
        finally:
            with self._lock:
                self._loading = None
                if lives != self._lives:
                    self._number = UNKNOWN
            done.set()

    def _take(self, number: int) -> None:
        version = self._store.catalog() if number else None
        self._number = version.number if version else 0
        if (
            version is not None
            and self.bounds is not None
            and version == self._version
            and number == version.number
        ):
            # Read again as it was: what was decided by it stands, and is not to be judged again.
            bounds = self.bounds
        elif version is not None:
            parsed = parse_version(version)
            bounds = CatalogLimits(parsed.catalog, parsed.number)
        elif self._given is not None:
            bounds = self._given
        else:
            raise LookupError("there is none in the store; apply one, or give the gate one")
        self.bounds, self.problem, self._version = bounds, "", version
        self._changed()
