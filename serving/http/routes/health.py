"""Whether the service lives and can work, and its metrics."""

from typing import Any

import msgspec

from tidegate.serving.gate.freshness import describe_state
from tidegate.serving.http.metrics import MEDIA
from tidegate.serving.http.problems import unavailable
from tidegate.serving.http.routing import Answer, Call, Nothing, Route, Success
from tidegate.serving.http.schemas import HealthBody, ReadyBody, ReadyQuery
from tidegate.serving.http.serialization import flow_body, json
from tidegate.serving.http.state import Service
from tidegate.serving.views.formatting import US


async def healthz(service: Service, call: Call[Nothing, Nothing, None]) -> Answer:
    return json(200, HealthBody("ok"))


async def readyz(service: Service, call: Call[Nothing, ReadyQuery, None]) -> Answer:
    if service.live.trouble(service.monotonic()):
        raise unavailable("the store cannot be followed; the log says why")
    problem = service.catalog_problem()
    if problem and not service.live.version.number:
        raise unavailable(f"there is no catalog that can be used: {problem}")
    flow = service.flow.state()
    if call.query.check != "service" and not flow.is_live:
        raise unavailable(describe_state(flow))
    return json(200, ReadyBody("ok", service.live.version.number, flow_body(flow), problem))


async def metrics(service: Service, call: Call[Nothing, Nothing, None]) -> Answer:
    flow = service.flow.state()
    trouble = service.live.trouble(service.monotonic())
    gauges = {
        "streams": float(service.places.taken),
        "catalog_version": float(service.live.version.number),
        "catalog_refused": float(bool(service.catalog_problem())),
        "store_reachable": float(not trouble),
        "flow_lag_seconds": float("inf") if flow.lag is None else flow.lag / US,
        "flow_shards": float(flow.shards),
        "flow_shards_behind": float(flow.behind),
    }
    if not trouble:
        told = await service.reader.ask(lambda reader: reader.notes("reconciliation", None, 1))
        gauges["drift_findings"] = sum(float(msgspec.json.decode(note.body)["open_drift"]) for note in told)
    return Answer(200, service.metrics.text(service.gate.counters(), gauges), MEDIA)


async def openapi(service: Service, call: Call[Nothing, Nothing, None]) -> Answer:
    return Answer(200, service.openapi)


ROUTES = (
    Route(
        "GET",
        "/openapi.json",
        openapi,
        "This document",
        [Success(200, "OpenAPI 3.1.", dict[str, Any])],
        scope=None,
    ),
    Route("GET", "/healthz", healthz, "Does it live?", [Success(200, "It does.", HealthBody)], scope=None),
    Route(
        "GET",
        "/readyz",
        readyz,
        "Can it work?",
        [Success(200, "The store is followed, and the flow counts.", ReadyBody)],
        scope=None,
        query=ReadyQuery,
        problems=(503,),
    ),
    Route(
        "GET",
        "/metrics",
        metrics,
        "Metrics for Prometheus",
        [Success(200, "In its text format.", None, MEDIA)],
    ),
)
