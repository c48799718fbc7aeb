"""Whether the service lives and can work, and its metrics."""

from typing import Any

import msgspec

from serving.service.metrics import MEDIA
from serving.service.problems import unavailable
from serving.service.routing import Answer, Call, Nothing, Route, Success
from serving.service.shapes import HealthBody, ReadyBody
from serving.service.state import Service
from serving.service.wording import json


async def healthz(service: Service, call: Call[Nothing, Nothing, None]) -> Answer:
    return json(200, HealthBody("ok"))


async def readyz(service: Service, call: Call[Nothing, Nothing, None]) -> Answer:
    if service.live.problem:
        raise unavailable("the store cannot be followed; the log says why")
    return json(200, ReadyBody("ok", service.live.number))


async def metrics(service: Service, call: Call[Nothing, Nothing, None]) -> Answer:
    gauges = {
        "streams": float(service.streams),
        "catalog_version": float(service.live.number),
        "store_reachable": float(not service.live.problem),
    }
    if not service.live.problem:
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
        [Success(200, "The store is followed.", ReadyBody)],
        scope=None,
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
