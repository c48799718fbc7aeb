"""One customer's limit on one meter, where it differs from the plan's: a change of the catalog, with its history."""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from xxhash import xxh3_64_hexdigest

from tidegate.operators.metering.thresholds import compute_limit_version
from tidegate.operators.model.catalog import Catalog
from tidegate.operators.model.ports import CatalogConflict, CatalogVersion, ControlLog
from tidegate.serving.http.problems import Problem, not_found, unavailable
from tidegate.serving.http.routes.catalog import faults_of, if_match, moved
from tidegate.serving.http.routing import Answer, Call, Nothing, Route, Sent, Success
from tidegate.serving.http.schemas import LimitEntryBody, MeterPath, NoteQuery, OverrideBody
from tidegate.serving.http.serialization import amount, json, limit_body
from tidegate.serving.http.state import Service
from tidegate.settings.catalog.edit import Entry, override_of, with_override
from tidegate.settings.catalog.file import CatalogError, parse_catalog
from tidegate.settings.catalog.plans import LimitEntry
from tidegate.settings.catalog.versions import apply_text

TRIES: Final = 5
ETAG: Final = {"ETag": "Of this limit, for If-Match."}
IF_MATCH: Final = {"If-Match": "The entity tag that GET gave."}


async def get_limit(service: Service, call: Call[MeterPath, Nothing, None]) -> Answer:
    customer, meter = call.path.customer, call.path.meter
    body, tag = await service.control.ask(lambda log: _shown(_newest(log), customer, meter))
    return json(200, body, etag=tag)


async def put_limit(service: Service, call: Call[MeterPath, NoteQuery, LimitEntryBody]) -> Answer:
    return await _change(service, call, _exact(msgspec.to_builtins(call.body)))


async def delete_limit(service: Service, call: Call[MeterPath, NoteQuery, None]) -> Answer:
    return await _change(service, call, None)


async def _change(service: Service, call: Call[MeterPath, NoteQuery, Any], entry: Entry | None) -> Answer:
    tag, path, by = if_match(call.headers), call.path, call.by
    what = "set" if entry is not None else "plan's again"
    note = call.query.note or f"limit of {path.customer} on {path.meter}: {what}"

    def change(log: ControlLog) -> tuple[OverrideBody, str]:
        newest = _newest(log)
        if _shown(newest, path.customer, path.meter)[1] != tag:
            raise moved("this limit is not what it was by then; look at it and change it again")
        text = with_override(newest.text, path.customer, path.meter, entry)
        applied = apply_text(log, text, origin="api", by=by, note=note[:500], expected=newest.number)
        return _shown(applied, path.customer, path.meter)

    body, tag = await service.control.ask(lambda log: _retried(lambda: change(log)))
    await service.followed(body.catalog)
    return json(200, body, etag=tag)


def _exact(entry: Any) -> Any:
    """Return the entry without floats: each number is whole, or refused."""
    if isinstance(entry, dict):
        return {name: _exact(value) for name, value in entry.items()}
    if isinstance(entry, list):
        return [_exact(value) for value in entry]
    return amount(entry) if isinstance(entry, float) else entry


def _retried(change: Callable[[], tuple[OverrideBody, str]]) -> tuple[OverrideBody, str]:
    """Another version that leaves this limit as it is stands in nobody's way."""
    for _ in range(TRIES):
        try:
            return change()
        except CatalogConflict:
            continue
        except CatalogError as error:
            raise Problem(422, "unfit", "this limit cannot be", errors=faults_of(error)) from None
    raise unavailable("the catalog is being changed by others; try again")


def _newest(log: ControlLog) -> CatalogVersion:
    newest = log.catalog()
    if newest is None:
        raise not_found("catalog: none has been applied yet")
    return newest


def _shown(version: CatalogVersion, customer: str, meter: str) -> tuple[OverrideBody, str]:
    catalog: Catalog = parse_catalog(version.text, is_applied=True)
    if all(meter != known.name for known in catalog.meters):
        raise not_found(f"meter {meter!r}: the catalog has none of this name")
    entry, effective = override_of(version.text, customer, meter), catalog.limit_of(customer, meter)
    own = _own(LimitEntry.model_validate(entry)) if entry is not None else None
    plan = catalog.plan_of(customer).name
    body = OverrideBody(customer, meter, plan, version.number, own, limit_body(effective))
    # Not of the version: changes elsewhere in the catalog are none of this limit.
    return body, f'"{xxh3_64_hexdigest(msgspec.json.encode((own, compute_limit_version(effective))))}"'


def _own(entry: LimitEntry) -> dict[str, Any]:
    """Return the entry as a LimitEntryBody."""
    whole = limit_body(entry.limit())
    return {
        name: getattr(whole, name)
        for name in LimitEntryBody.__struct_fields__
        if name in entry.model_fields_set
    }


ROUTES = (
    Route(
        "GET",
        "/v1/customers/{customer}/limits/{meter}",
        get_limit,
        "A customer's own limit on a meter, and the one that holds",
        [Success(200, "As of now.", OverrideBody, headers=ETAG)],
        customer="path",
        at=MeterPath,
        problems=(404,),
    ),
    Route(
        "PUT",
        "/v1/customers/{customer}/limits/{meter}",
        put_limit,
        "Set a customer's own limit on a meter",
        [Success(200, "It holds from the next decision on.", OverrideBody, headers=ETAG)],
        scope="admin",
        at=MeterPath,
        query=NoteQuery,
        takes=[Sent("application/json", LimitEntryBody)],
        problems=(404, 412, 428),
        needs=IF_MATCH,
        about="It replaces the customer's own limit as a whole; what is left out is as the plan has it.",
    ),
    Route(
        "DELETE",
        "/v1/customers/{customer}/limits/{meter}",
        delete_limit,
        "Let the plan's limit hold again",
        [Success(200, "It does, from the next decision on.", OverrideBody, headers=ETAG)],
        scope="admin",
        at=MeterPath,
        query=NoteQuery,
        problems=(404, 412, 428),
        needs=IF_MATCH,
    ),
)
