"""Events taken in: judged as the flow judges them, made durable, then answered for, one by one."""

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from tidegate.operators.events.envelope import (
    BATCH,
    EVENT,
    JSON,
    LINES,
    EnvelopeError,
    EventIdentity,
    read_identity,
    split_request,
)
from tidegate.operators.events.unmetered import Cause
from tidegate.operators.model.ports import IngestError
from tidegate.serving.gate.pending import PendingEvent
from tidegate.serving.http.problems import Fault, Problem, unavailable
from tidegate.serving.http.readers.intake import Verdict
from tidegate.serving.http.routing import Answer, Call, Nothing, Route, Sent, Success
from tidegate.serving.http.schemas import EventResult, EventsBody, EventWarning
from tidegate.serving.http.serialization import json
from tidegate.serving.http.state import Service

# Below it judging takes less than handing it to a thread and back would delay others.
INLINE_BYTES: Final = 32 * 1024
ID_SHOWN: Final = 1024
WARNINGS_MAX: Final = 20


async def post_events(service: Service, call: Call[Nothing, Nothing, bytes]) -> Answer:
    """202 where all were taken, 207 where some were, 422 where none was; what was taken is durable."""
    media = call.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    try:
        events = split_request(media, call.headers, call.body)
    except EnvelopeError as error:
        raise Problem(400, "malformed", str(error)) from None
    most = service.settings.batch_max
    if len(events) > most:
        raise Problem(
            413,
            "too-many",
            f"needs at most {most} events in a request, got {len(events)}; send fewer at a time",
        )
    verdicts = await _verdicts(service, events)
    names = [read_identity(event) for event in events]
    taken = [i for i, verdict in enumerate(verdicts) if not verdict.reason]
    if taken:
        try:
            places = await service.ingest.put([events[i] for i in taken], [names[i].customer for i in taken])
        except IngestError as error:
            raise unavailable(str(error)) from None
        for i, place in zip(taken, places, strict=True):
            verdict = verdicts[i]
            if verdict.quantities:
                event = PendingEvent(verdict.at, verdict.quantities, place)
                service.gate.accepted(names[i].customer, verdict.identity, event)
    rejected = len(events) - len(taken)
    service.metrics.events(len(taken), rejected)
    if rejected and not taken:
        faults = [Fault(verdict.detail, f"/{i}", verdict.reason) for i, verdict in enumerate(verdicts)]
        raise Problem(
            422, "rejected", f"none of {rejected} events can be metered; `errors` says why", errors=faults
        )
    results = [_result(name.id, verdict) for name, verdict in zip(names, verdicts, strict=True)]
    warnings = _warnings(zip(names, verdicts, strict=True))
    unmetered = sum(1 for verdict in verdicts if not verdict.reason and not verdict.metered_by)
    return json(207 if rejected else 202, EventsBody(len(taken), rejected, results, unmetered, warnings))


async def _verdicts(service: Service, events: list[bytes]) -> list[Verdict]:
    version = service.live.version
    if sum(map(len, events)) <= INLINE_BYTES:
        return service.judge.verdicts(events, version)
    return await asyncio.to_thread(service.judge_of_many.verdicts, events, version)


def _result(id: str, verdict: Verdict) -> EventResult:
    if not verdict.reason:
        if not verdict.metered_by:
            return EventResult(id[:ID_SHOWN], "unmetered", unmetered=verdict.causes[0].reason)
        return EventResult(id[:ID_SHOWN], "accepted", metered_by=verdict.metered_by)
    return EventResult(id[:ID_SHOWN], "rejected", verdict.reason, verdict.detail)


def _warnings(results: Iterable[tuple[EventIdentity, Verdict]]) -> list[EventWarning]:
    """Return the reasons why events will not be metered, the first WARNINGS_MAX of them."""
    found: dict[Cause, tuple[str, int]] = {}
    for name, verdict in results:
        for cause in verdict.causes:
            first, count = found.get(cause, (name.id[:ID_SHOWN], 0))
            found[cause] = first, count + 1
    return [
        EventWarning(cause.reason, str(cause), cause.name, cause.meter, cause.key, cause.partly, count, first)
        for cause, (first, count) in islice(found.items(), WARNINGS_MAX)
    ]


_TEXT: Final[dict[str, Any]] = {"type": "string", "minLength": 1, "maxLength": 1024}
_NAME: Final[dict[str, Any]] = {"type": "string", "minLength": 1, "maxLength": 256}
_TIME: Final[dict[str, Any]] = {"type": "string", "format": "date-time"}
CLOUD_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "description": "A CloudEvent 1.0: `subject` is the customer, `type` the event's name, `data` its properties.",
    "required": ["specversion", "id", "source", "type", "subject", "time"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": _TEXT,
        "source": _TEXT,
        "type": _NAME,
        "subject": _NAME,
        "time": _TIME,
        "datacontenttype": {"type": ["string", "null"]},
        "data": {"type": ["object", "null"]},
        "data_base64": {
            "type": ["string", "null"],
            "description": "Data that is JSON, in base64, instead of data.",
        },
    },
}
DODO_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "description": "An event as Dodo Payments takes it in.",
    "required": ["event_id", "customer_id", "event_name", "timestamp"],
    "properties": {
        "event_id": _TEXT,
        "customer_id": _NAME,
        "event_name": _NAME,
        "timestamp": _TIME,
        "metadata": {"type": ["object", "null"]},
    },
}
EVENT_REF: Final = {"$ref": "#/components/schemas/CloudEvent"}
DODO_REF: Final = {"$ref": "#/components/schemas/DodoEvent"}
EITHER: Final = {"anyOf": [EVENT_REF, DODO_REF]}
SCHEMAS: Final = {"CloudEvent": CLOUD_EVENT, "DodoEvent": DODO_EVENT}

ROUTES = (
    Route(
        "POST",
        "/v1/events",
        post_events,
        "Send usage events",
        [
            Success(202, "All were taken and are durable.", EventsBody),
            Success(207, "Some were taken and are durable, others rejected.", EventsBody),
        ],
        scope="ingest",
        takes=[
            Sent(EVENT, schema=EVENT_REF),
            Sent(BATCH, schema={"type": "array", "minItems": 1, "items": EVENT_REF}),
            Sent(
                JSON,
                schema={
                    "anyOf": [
                        EVENT_REF,
                        DODO_REF,
                        {"type": "array", "minItems": 1, "items": EITHER},
                        {
                            "type": "object",
                            "required": ["events"],
                            "properties": {"events": {"type": "array", "minItems": 1, "items": EITHER}},
                        },
                    ]
                },
            ),
            Sent(LINES, schema={"type": "string", "description": "One event a line."}),
        ],
        about="Safe to send again: an event's own identity (customer, source, id), with the same time, makes a repeat "
        "harmless, so no Idempotency-Key is needed. CloudEvents in binary mode have their attributes in ce- headers "
        "and their data as application/json. A body may be sent with Content-Encoding gzip or zstd; the limit is that "
        "of the uncompressed body. An event that is taken although no meter of the present catalog "
        "reads it has the status `unmetered` with a reason, which `warnings` explains.",
    ),
)
