"""What an operator looks at and does: overview, alerts, drift, how a total came to be, and adjustments."""

import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import UNSET

from tidegate.connectors.reconciliation.book_schema import BookError
from tidegate.connectors.reconciliation.statement_store import FILE, read_statement
from tidegate.operators.billing.acknowledgements import render_acknowledgement
from tidegate.operators.events.keys import shard_of
from tidegate.operators.model.adjustments import find_fault
from tidegate.operators.model.aggregates import ADJUSTABLE
from tidegate.operators.model.ports import Adjustment, ControlConflict, ControlLog, Note, StoredTotal
from tidegate.operators.model.records import Counter
from tidegate.serving.http.problems import Problem, not_found, unfit
from tidegate.serving.http.readers.outbox_status import last_events
from tidegate.serving.http.readers.unmetered import read_unmetered, reasons_of
from tidegate.serving.http.readers.usage import period, period_body
from tidegate.serving.http.routing import Answer, Call, Nothing, Route, Sent, Success
from tidegate.serving.http.schemas import (
    AcknowledgementBody,
    AcknowledgementPost,
    AcknowledgementsBody,
    AcknowledgementShown,
    AdjustmentBody,
    AdjustmentPost,
    AlertsBody,
    AlertsQuery,
    DriftBody,
    ExplainBody,
    ExplainQuery,
    MeterPath,
    OverviewBody,
    StatementBody,
    StatementQuery,
    UnmeteredBody,
    UnmeteredListBody,
    UnmeteredQuery,
    exact,
)
from tidegate.serving.http.serialization import asked_at, at_of, bodies, json, when
from tidegate.serving.http.state import Service
from tidegate.serving.views.acknowledge import Asked, Unfit, as_acknowledged, record_of
from tidegate.serving.views.balance import summed, unbalanced

NOTES_MAX: Final = 1000
# Findings among which the one that is meant is looked for.
FINDINGS_MAX: Final = 100_000


async def get_overview(service: Service, call: Call[Nothing, Nothing, None]) -> Answer:
    return json(200, await service.board.overview())


async def get_alerts(service: Service, call: Call[Nothing, AlertsQuery, None]) -> Answer:
    return json(200, AlertsBody(await _notes(service, "alert", call.query)))


async def get_drift(service: Service, call: Call[Nothing, AlertsQuery, None]) -> Answer:
    found = await _notes(service, "drift", call.query)
    known = await service.control.ask(lambda log: as_acknowledged(found, service.acknowledged(log)))
    return json(200, DriftBody(known))


async def get_statement(service: Service, call: Call[Nothing, StatementQuery, None]) -> Answer:
    folder, query = Path(service.settings.data_dir) / "reconciliation", call.query
    customer, invoice = query.customer or None, query.invoice or None
    if not (folder / FILE).is_file():
        return json(200, StatementBody([]))
    try:
        lines = await asyncio.to_thread(read_statement, folder, customer, invoice, query.limit)
    except BookError as error:
        raise Problem(503, "unavailable", str(error), headers={"retry-after": "1"}) from None
    return json(200, StatementBody(lines))


async def get_unmetered(service: Service, call: Call[Nothing, UnmeteredQuery, None]) -> Answer:
    customer, limit = call.query.customer or None, call.query.limit

    def read(reader: Any) -> UnmeteredListBody:
        causes = read_unmetered(reader, customer, limit)
        if customer is not None:
            return UnmeteredListBody(causes)
        sums = summed(reader.counters())
        return UnmeteredListBody(causes, sums.get("unmetered", 0), reasons_of(sums))

    return json(200, await service.reader.ask(read))


async def explain(service: Service, call: Call[MeterPath, ExplainQuery, None]) -> Answer:
    customer, meter, query = call.path.customer, call.path.meter, call.query
    catalog = service.live.version.catalog
    if service.live.problem:
        raise Problem(503, "unavailable", service.live.problem, headers={"retry-after": "1"})
    known = {one.name: one for one in catalog.meters}
    if meter not in known:
        raise not_found(f"meter {meter!r}: the catalog has none of this name")
    now = service.clock()
    start, end = period(catalog, customer, now if query.at is UNSET else asked_at(query.at))

    def read(reader: Any) -> tuple[list[StoredTotal], list[Note], list[Counter], list[UnmeteredBody]]:
        return (
            reader.read(customer, start),
            reader.notes("adjustment", customer, NOTES_MAX),
            list(reader.counters()),
            read_unmetered(reader, customer, NOTES_MAX),
        )

    stored, notes, counters, unmetered = await service.reader.ask(read)
    found = next(
        (
            one
            for one in stored
            if (one.total.window, one.total.meter, one.total.start) == ("period", meter, start)
        ),
        None,
    )
    shard = shard_of(customer, service.settings.shards)
    sums = summed(counter for counter in counters if counter.shard == shard)
    # What is counted of other meters does not explain this one.
    own = {name: value for name, value in sums.items() if ":" not in name or name.partition(":")[2] == meter}
    adjustments = [
        body for body in bodies(notes) if body.get("meter") == meter and start <= body.get("at", 0) < end
    ]
    for body in adjustments:
        body["at"] = when(body["at"])
    last = last_events(service.settings, customer, query.events) if query.events else []
    total = found.total if found else None
    return json(
        200,
        ExplainBody(
            customer,
            meter,
            period_body(start, end),
            exact(total.total) if total else "0",
            total.events if total else 0,
            total.late if total else 0,
            total.corrected if total else 0,
            exact(total.adjustment) if total else "0",
            adjustments,
            total.version if total else 0,
            when(total.as_of) if total else None,
            when(found.written_at) if found else None,
            shard,
            own,
            not unbalanced(sums),
            [event for event in last if _name_of(event) == known[meter].event_name],
            [cause for cause in unmetered if cause.meter in (meter, "")],
        ),
    )


async def post_adjustment(service: Service, call: Call[Nothing, Nothing, AdjustmentPost]) -> Answer:
    """On record when it is answered; the flow applies it, or notes why not."""
    asked = call.body
    known = {meter.name: meter for meter in service.live.version.catalog.meters}
    if asked.meter not in known:
        raise not_found(f"meter {asked.meter!r}: the catalog has none of this name")
    if known[asked.meter].kind not in ADJUSTABLE:
        raise unfit(
            f"meter {asked.meter!r}: a total of {known[asked.meter].kind} is a reading, and can't be adjusted"
        )
    if asked.quantity.endswith("\n"):
        raise unfit("quantity: needs digits, got a line break")
    record = Adjustment(
        id=asked.id,
        customer=asked.customer,
        meter=asked.meter,
        at=at_of(asked.at, "at"),
        quantity=asked.quantity,
        reason=asked.reason,
        by=call.by,
    )
    if fault := find_fault(record):
        raise unfit(fault)
    try:
        position = await service.control.ask(lambda log: log.append(record))
    except ControlConflict as conflict:
        raise Problem(409, "conflict", str(conflict)) from None
    return json(202, AdjustmentBody(asked.id, position))


async def _notes(service: Service, kind: str, query: AlertsQuery) -> list[dict[str, Any]]:
    customer, limit = query.customer or None, query.limit
    return bodies(await service.reader.ask(lambda reader: reader.notes(kind, customer, limit)))


def _name_of(event: dict[str, Any]) -> Any:
    inside = event.get("event")
    return inside.get("type") or inside.get("event_name") if isinstance(inside, dict) else None


async def get_acknowledgements(service: Service, call: Call[Nothing, Nothing, None]) -> Answer:
    known = await service.control.ask(lambda log: service.acknowledged(log).list_in_force())
    return json(
        200,
        AcknowledgementsBody(
            [msgspec.convert(render_acknowledgement(one), AcknowledgementShown) for one in known]
        ),
    )


async def post_acknowledgement(service: Service, call: Call[Nothing, Nothing, AcknowledgementPost]) -> Answer:
    """On record when it is answered; reconciliation goes by it from its next comparison."""
    sent = call.body
    start = None if sent.period_start is UNSET else at_of(sent.period_start, "period_start")
    up_to = None if sent.up_to is UNSET else sent.up_to
    if up_to is not None and up_to.endswith("\n"):
        raise unfit("up_to: needs digits, got a line break")
    asked = Asked(sent.customer, sent.meter, start, sent.cause, up_to, sent.withdraw)
    customer = sent.customer or None
    findings = bodies(await service.reader.ask(lambda reader: reader.notes("drift", customer, FINDINGS_MAX)))

    def append(log: ControlLog) -> str:
        known = service.acknowledged(log)
        record = record_of(
            asked, findings, known, id=sent.id, reason=sent.reason, by=call.by, at=service.clock()
        )
        return log.append(record)

    try:
        position = await service.control.ask(append)
    except Unfit as error:
        raise not_found(str(error)) from None
    except ControlConflict as conflict:
        raise Problem(409, "conflict", str(conflict)) from None
    return json(202, AcknowledgementBody(sent.id, position))


ROUTES = (
    Route(
        "GET",
        "/v1/overview",
        get_overview,
        "All customers at a glance",
        [Success(200, "As of a second ago at most.", OverviewBody)],
    ),
    Route(
        "GET",
        "/v1/alerts",
        get_alerts,
        "Alerts",
        [Success(200, "The newest first.", AlertsBody)],
        customer="query",
        query=AlertsQuery,
        about="With a customer's key only that customer's.",
    ),
    Route(
        "GET",
        "/v1/unmetered",
        get_unmetered,
        "Accepted events that were not metered",
        [Success(200, "By cause, the most events first.", UnmeteredListBody)],
        customer="query",
        query=UnmeteredQuery,
        about="With a customer's key only that customer's.",
    ),
    Route(
        "GET",
        "/v1/drift",
        get_drift,
        "What reconciliation found",
        [Success(200, "The newest first.", DriftBody)],
        query=AlertsQuery,
    ),
    Route(
        "GET",
        "/v1/statement",
        get_statement,
        "What is billed for usage, line by line",
        [Success(200, "By customer and period, as reconciliation last saw it.", StatementBody)],
        query=StatementQuery,
        about="`invoice` is an invoice's or a payment's id. Without reconciliation on the same machine it is empty.",
    ),
    Route(
        "GET",
        "/v1/drift/acknowledgements",
        get_acknowledgements,
        "Drift that is accepted",
        [Success(200, "Those in force, the oldest first.", AcknowledgementsBody)],
    ),
    Route(
        "POST",
        "/v1/drift/acknowledgements",
        post_acknowledgement,
        "Accept drift, or withdraw that",
        [Success(202, "It is on record, with who and why.", AcknowledgementBody)],
        scope="admin",
        takes=[Sent("application/json", AcknowledgementPost)],
        problems=(404, 409),
        about="What is accepted stays listed and raises no alert until it grows.",
    ),
    Route(
        "GET",
        "/v1/explain/{customer}/{meter}",
        explain,
        "How a total came to be",
        [Success(200, "What is in it, and what was kept out.", ExplainBody)],
        at=MeterPath,
        query=ExplainQuery,
        problems=(404,),
        about="The counters are those of the customer's shard, so of other customers too.",
    ),
    Route(
        "POST",
        "/v1/adjustments",
        post_adjustment,
        "Change a total by hand",
        [Success(202, "It is on record, and will be applied once.", AdjustmentBody)],
        scope="admin",
        takes=[Sent("application/json", AdjustmentPost)],
        problems=(404, 409),
    ),
)
