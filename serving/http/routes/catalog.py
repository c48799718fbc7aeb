"""The catalog: read, replaced as a whole, its history. Versions are entity tags."""

from typing import Final

from tidegate.operators.model.ports import CatalogConflict, CatalogVersion
from tidegate.serving.http.problems import Fault, Problem, not_found, unfit
from tidegate.serving.http.routing import Answer, Call, Nothing, Route, Sent, Success
from tidegate.serving.http.schemas import (
    CatalogBody,
    CatalogPut,
    CatalogQuery,
    ListQuery,
    NoteQuery,
    VersionBody,
    VersionsBody,
)
from tidegate.serving.http.serialization import catalog_body, json, version_body
from tidegate.serving.http.state import Service
from tidegate.settings.catalog.file import CatalogError
from tidegate.settings.catalog.versions import apply_text

YAML: Final = "application/yaml"
FAULTS_MAX: Final = 100
ETAG: Final = {"ETag": "The version's number in quotes, for If-Match."}
IF_MATCH: Final = {
    "If-Match": 'The entity tag of the version that this is a change of, "0" if there is none yet.'
}


async def get_catalog(service: Service, call: Call[Nothing, CatalogQuery, None]) -> Answer:
    number = call.query.version or None
    found = await service.control.ask(lambda log: log.catalog(number))
    if found is None:
        raise not_found(
            "catalog: there is no such version" if number else "catalog: none has been applied yet"
        )
    tag = tag_of(found.number)
    if YAML in call.headers.get("accept", ""):
        return Answer(200, found.text.encode(), YAML, [("etag", tag)])
    return json(200, catalog_body(found), etag=tag)


async def put_catalog(service: Service, call: Call[Nothing, NoteQuery, CatalogPut | bytes]) -> Answer:
    expected = expected_of(call.headers)
    if isinstance(call.body, bytes):
        try:
            text, note = call.body.decode(), call.query.note
        except UnicodeDecodeError:
            raise unfit("catalog: needs UTF-8 text") from None
    else:
        text, note = call.body.text, call.body.note or call.query.note
    applied = await apply(service, text, call.by, note, expected)
    await service.followed(applied.number)
    return json(200, version_body(applied), etag=tag_of(applied.number))


async def get_versions(service: Service, call: Call[Nothing, ListQuery, None]) -> Answer:
    limit = call.query.limit
    found = await service.control.ask(lambda log: log.catalogs(limit))
    return json(200, VersionsBody([version_body(version) for version in found]))


async def apply(service: Service, text: str, by: str, note: str, expected: int | None) -> CatalogVersion:
    """Apply the next version; a Problem of status 412 if another came first, of 422 if it is wrong."""
    try:
        return await service.control.ask(
            lambda log: apply_text(log, text, origin="api", by=by, note=note, expected=expected)
        )
    except CatalogConflict as conflict:
        raise moved(str(conflict), conflict.current) from None
    except CatalogError as error:
        raise unfit(f"catalog: {len(error.problems)} problems", faults_of(error)) from None


def faults_of(error: CatalogError) -> list[Fault]:
    return [Fault(one.message, one.path, line=one.line) for one in error.problems[:FAULTS_MAX]]


def tag_of(number: int) -> str:
    return f'"{number}"'


def expected_of(headers: object) -> int:
    """Return the version that If-Match names; a Problem of status 428 if it is absent, of 412 if it is none."""
    given = if_match(headers)
    text = given.strip('"')
    if not text.isdigit() or len(text) > 15 or f'"{text}"' != given:
        raise moved(f"if-match: needs the entity tag of a version, got {given[:60]}")
    return int(text)


def if_match(headers: object) -> str:
    assert isinstance(headers, dict)
    given: str = headers.get("if-match", "").strip()
    if not given:
        raise Problem(
            428,
            "if-match",
            "needs If-Match with the ETag of what is being changed, so that no change is lost",
        )
    return given


def moved(detail: str, version: int | None = None) -> Problem:
    if version is None:
        return Problem(412, "moved", detail)
    return Problem(412, "moved", detail, headers={"etag": tag_of(version)}, version=version)


ROUTES = (
    Route(
        "GET",
        "/v1/catalog",
        get_catalog,
        "The catalog",
        [
            Success(200, "The version.", CatalogBody, headers=ETAG),
            Success(200, "Its text, where Accept asks for it.", None, YAML, ETAG),
        ],
        scope="admin",
        query=CatalogQuery,
        problems=(404,),
    ),
    Route(
        "PUT",
        "/v1/catalog",
        put_catalog,
        "Apply a catalog",
        [Success(200, "It is the newest version now.", VersionBody, headers=ETAG)],
        scope="admin",
        query=NoteQuery,
        takes=[Sent("application/json", CatalogPut), Sent(YAML, schema={"type": "string"})],
        problems=(412, 428),
        needs=IF_MATCH,
        about="Applied whole or not at all. The flow, every gate and every page follow within moments.",
    ),
    Route(
        "GET",
        "/v1/catalog/versions",
        get_versions,
        "The catalog's history",
        [Success(200, "The newest first.", VersionsBody)],
        scope="admin",
        query=ListQuery,
    ),
)
