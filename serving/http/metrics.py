"""What the service counts of itself, for Prometheus. No label has a customer's name."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA: Final = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """One service's, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tidegate_http_requests", "Requests.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "tidegate_http_seconds",
            "Seconds to an answer.",
            ["route"],
            registry=self._registry,
            buckets=BOUNDS,
        )
        self._events = Counter("tidegate_ingest_events", "Events sent.", ["result"], registry=self._registry)
        self._turned_away = Counter(
            "tidegate_http_turned_away",
            "Connections and requests that were refused or cut off before they had a route, by why.",
            ["why"],
            registry=self._registry,
        )
        self._gate = Counter(
            "tidegate_gate_decisions", "Decisions since the start, by how.", ["how"], registry=self._registry
        )
        self._decided: dict[str, int] = {}
        self._gauges = {
            name: Gauge(f"tidegate_{name}", what, registry=self._registry)
            for name, what in (
                ("streams", "Streams that are open."),
                ("catalog_version", "The newest catalog that is known."),
                ("catalog_refused", "1 while the catalog's file, or its newest version, cannot be used."),
                ("store_reachable", "1 while the store can be followed."),
                (
                    "flow_lag_seconds",
                    "How old the oldest shard's totals may be; +Inf where the flow has not said.",
                ),
                ("flow_shards", "Shards of the flow that has reported."),
                ("flow_shards_behind", "Shards whose totals are older than TIDEGATE_MAX_LAG."),
                ("drift_findings", "Totals that differ from the provider's, after the last reconciliation."),
            )
        }
        # Looked up once: labels() takes longer than counting.
        self._known_requests: dict[tuple[str, int], Counter] = {}
        self._known_seconds: dict[str, Histogram] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """One request has ended."""
        counter = self._known_requests.get((route, status))
        if counter is None:
            counter = self._known_requests[route, status] = self._requests.labels(route, str(status))
        counter.inc()
        histogram = self._known_seconds.get(route)
        if histogram is None:
            histogram = self._known_seconds[route] = self._seconds.labels(route)
        histogram.observe(seconds)

    def events(self, accepted: int, rejected: int) -> None:
        self._events.labels("accepted").inc(accepted)
        self._events.labels("rejected").inc(rejected)

    def turned_away(self, why: str) -> None:
        self._turned_away.labels(why).inc()

    def text(self, gate: dict[str, int], gauges: dict[str, float]) -> bytes:
        """All of it in Prometheus' text format, with these values of now."""
        for how, count in gate.items():
            self._gate.labels(how).inc(count - self._decided.get(how, 0))
            self._decided[how] = count
        for name, value in gauges.items():
            self._gauges[name].set(value)
        return generate_latest(self._registry)
