"""The catalog that a gate decides by: the store's newest version, else the one it was given."""

from collections.abc import Callable
from threading import Event, Lock, Thread

from operators.bounds import Bounds
from operators.catalog import Catalog
from operators.ports import Holds, StoreError
from serving.gate.tally import LOG
from settings.catalog import CatalogError, parse_catalog


class Catalogs:
    """Follows the store's newest version. A version is read on a thread of its own, as it may be large.

    `bounds` is what decisions go by, None as long as no catalog is known. `problem` says why the newest version is
    not it, else it is empty. `changed` is called after each change of `bounds`.
    """

    def __init__(self, store: Holds, given: Catalog | None, changed: Callable[[], None]) -> None:
        self._store = store
        self._changed = changed
        self._given = Bounds(given, 0) if given is not None else None
        self._lock = Lock()
        self._loading: Event | None = None
        self._number = -1 if given is None else 0
        self.bounds = self._given
        self.problem = ""

    def follow(self, number: int, patience: float) -> None:
        """Makes the newest version the current one, if its `number` says that it is not; waits so many seconds."""
        if number == self._number:
            return
        with self._lock:
            done = self._loading
            if done is None:
                done = self._loading = Event()
                Thread(target=self._load, args=(number, done), name="tidegate-catalog", daemon=True).start()
        done.wait(patience)

    def _load(self, number: int, done: Event) -> None:
        try:
            self._take(number)
        except Exception as error:
            # Whatever it was, the old catalog goes on, and the next to ask tries again.
            problem = f"the newest catalog cannot be used: {error}"
            if problem != self.problem:
                LOG.warning(problem)
            self.problem = problem
        finally:
            with self._lock:
                self._loading = None
            done.set()

    def _take(self, number: int) -> None:
        version = self._store.catalog() if number else None
        if version is None:
            self._number = 0
            if self._given is None:
                raise StoreError("there is none in the store; apply one, or give the gate one")
            bounds: Bounds | None = self._given
        else:
            number = version.number
            try:
                bounds = Bounds(parse_catalog(version.text, f"catalog {number}"), number)
            except CatalogError as error:
                # Once read is enough: it will not get better.
                self._number = number
                raise StoreError(str(error.problems[0])) from None
        self.bounds, self._number, self.problem = bounds, number, ""
        self._changed()
