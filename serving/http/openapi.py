"""The OpenAPI document, made from the routes and the types that they read and write.

Source: https://spec.openapis.org/oas/v3.1.1
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from tidegate.serving.http import schemas
from tidegate.serving.http.problems import MEDIA, ProblemBody
from tidegate.serving.http.routes.events import SCHEMAS
from tidegate.serving.http.routing import Route, Sent, Success

API_VERSION: Final = "1.0.0"
REF: Final = "#/components/schemas/{name}"
PROBLEM: Final = {"$ref": "#/components/schemas/ProblemBody"}
SECURITY: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {"header": []}]
RETRY_AFTER: Final = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
ABOUT: Final = """Usage metered exactly and in real time: events in, decisions, usage and bills out.

Quantities are exact: whole numbers, or decimals as text. Times are RFC 3339. Errors are problem details (RFC 9457).
"""


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the whole document."""
    types = _types(routes)
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    by_shape = dict(zip(map(str, types), schemas, strict=True))
    for shape in types:
        # What its fields alone do not say.
        components.get(getattr(shape, "__name__", ""), {}).update(getattr(shape, "schema", {}))
    components = _without_floats(components)
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_shape)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidegate",
            "version": API_VERSION,
            "description": ABOUT,
            "license": {"name": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": {**components, **SCHEMAS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, tg_…."},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _types(routes: Sequence[Route]) -> list[Any]:
    found: dict[str, Any] = {str(ProblemBody): ProblemBody}
    for route in routes:
        for shape in (
            route.at,
            route.query,
            *(sent.shape for sent in route.takes),
            *(answer.shape for answer in route.answers),
        ):
            if shape is not None:
                found[str(shape)] = shape
    return list(found.values())


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "security": SECURITY if route.scope else [],
        "parameters": [
            *_parameters(route.at, "path"),
            *_parameters(route.query, "query"),
            *(
                {
                    "name": name,
                    "in": "header",
                    "required": True,
                    "description": what,
                    "schema": {"type": "string", "pattern": '^"[0-9a-f]{1,16}"$'},
                }
                for name, what in route.needs.items()
            ),
        ],
        "responses": _responses(route, schemas),
    }
    about = route.about + (f" Needs the scope `{route.scope}`." if route.scope else "")
    if about:
        operation["description"] = about.strip()
    if route.takes:
        content = {sent.media: {"schema": _schema_of(sent, schemas)} for sent in route.takes}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _schema_of(sent: Sent, schemas: dict[str, Any]) -> Any:
    return dict(sent.schema) if sent.shape is None else schemas[str(sent.shape)]


def _parameters(shape: Any, place: str) -> list[dict[str, Any]]:
    """One for each field."""
    if not shape.__struct_fields__:
        return []
    _, components = msgspec.json.schema_components([shape], ref_template=REF)
    schema = components[shape.__name__]
    return [
        {
            "name": name,
            "in": place,
            "required": name in schema.get("required", ()),
            "schema": _without_floats(field),
        }
        for name, field in schema["properties"].items()
    ]


def _without_floats(schema: Any) -> Any:
    """Where a whole number is taken that was written with a point, an integer is what is meant."""
    match schema:
        case {"description": schemas.AS_WHOLE, "type": "number"}:
            return None
        case dict():
            kept = {key: _without_floats(value) for key, value in schema.items()}
            if len(kept.get("anyOf", ())) == 1:
                (only,) = kept.pop("anyOf")
                return {**only, **kept}
            return kept
        case list():
            found = map(_without_floats, schema)
            return [one for one in found if one is not None]
    return schema


def _responses(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for answer in route.answers:
        there = responses.setdefault(str(answer.status), {"description": answer.what, "content": {}})
        there["content"][answer.media] = {"schema": _answer_schema(answer, schemas)}
        if answer.headers:
            there["headers"] = {
                name: {"description": what, "schema": {"type": "string"}}
                for name, what in answer.headers.items()
            }
    for status in _problems(route):
        response: dict[str, Any] = {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA: {"schema": PROBLEM}},
        }
        if status in (429, 503):
            response["headers"] = RETRY_AFTER
        responses[str(status)] = response
    return responses


def _answer_schema(answer: Success, schemas: dict[str, Any]) -> Any:
    return {"type": "string"} if answer.shape is None else schemas[str(answer.shape)]


def _problems(route: Route) -> list[int]:
    """Those that the route names, and those that any may end with."""
    found = set(route.problems) | {500}
    if route.scope is not None:
        found |= {401, 403, 429, 503}
    # Unknown parameters are refused everywhere, broken escapes, long addresses and large heads too.
    found |= {400, 414, 422, 431}
    if route.takes:
        found |= {408, 413, 415}
    return sorted(found)
