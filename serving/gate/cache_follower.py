"""A thread that keeps a near cache right: it drops what the store's feed tells, and proves that nothing is missing."""

from collections.abc import Callable
from contextlib import closing
from threading import Event, Thread

from tidegate.operators.model.ports import Feed, Holds
from tidegate.serving.gate.catalog_source import GateCatalog
from tidegate.serving.gate.freshness import Freshness
from tidegate.serving.gate.near_cache import Near
from tidegate.serving.gate.pending import Pending
from tidegate.serving.gate.tally import LOG, Tally

# Seconds: a wait for news, at whose end the feed is proven; and between two tries to open it again.
WAIT = 0.01
PAUSE_FIRST, PAUSE_MAX = 0.01, 0.25
PRUNE_EVERY = 1.0


class Watch:
    """Follows the feed of `store` until it is stopped, opening it again whenever it breaks."""

    def __init__(
        self,
        store: Holds,
        near: Near,
        catalogs: GateCatalog,
        freshness: Freshness,
        pending: Pending,
        tally: Tally,
        monotonic: Callable[[], float],
    ) -> None:
        self._store, self._near, self._catalogs, self._tally = store, near, catalogs, tally
        self._freshness, self._pending = freshness, pending
        self._pruned_at = float("-inf")
        self._monotonic = monotonic
        self._stopped = Event()
        self._pause = PAUSE_FIRST

    def start(self) -> None:
        Thread(target=self._run, name="tidegate-feed", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with closing(self._store.feed()) as feed:
                    # What was read before it was opened, it does not tell of.
                    self._catalogs.forget()
                    self._near.lose()
                    while not self._stopped.is_set():
                        self.turn(feed)
            except Exception as error:
                # Whatever it was: without proof nothing is answered from the cache.
                self._near.lose()
                self._tally.add("feed_lost")
                LOG.info("feed lost, each check reads the store: %s", error)
                self._stopped.wait(self._pause)
                self._pause = min(2 * self._pause, PAUSE_MAX)
        self._near.lose()

    def turn(self, feed: Feed) -> None:
        """One wait for news."""
        begun = self._monotonic()
        news = feed.wait(WAIT)
        self._freshness.follow(self._store, begun)
        if begun - self._pruned_at >= PRUNE_EVERY:
            self._pending.prune(self._freshness.positions)
            self._pruned_at = begun
        # Before anything is proven: views under the old catalog are dropped once the new one is there.
        self._catalogs.follow(news.catalog, self._near.staleness / 2)
        if news.customers is None or news.customers:
            self._near.drop(news.customers)
        self._near.prove(begun)
        self._pause = PAUSE_FIRST
