"""What every meter's name has stood for: over all versions in a store's log, and in a flow that has counted it.

A name that has counted keeps its aggregation and key for good, also where it was taken out in between, as the flow's
state and the store still hold its totals. A version is checked against this before it is applied, by everyone who
can apply one, so each version that was ever in force can be applied again.

The log keeps two memos for it. `meters` is a summary of its versions, worked out again where it is missing, so a check
costs no more in a long history. `counted` is what the flow's state remembers, also of a store before this one, and
stands above it.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from tidegate.operators.model.aggregates import Kind
from tidegate.operators.model.catalog import Catalog, Meter, explain_clash
from tidegate.operators.model.ports import ControlLog
from tidegate.settings.catalog.file import CatalogError, Problem, parse_meters

VERSIONS: Final = "meters"
COUNTED: Final = "counted"

T = TypeVar("T")
Definition = tuple[Kind, str | None]
"""Aggregation and key."""


class _Summary(msgspec.Struct):
    """The first definition of each name in the versions up to number `through`."""

    through: int = 0
    meters: dict[str, Definition] = {}


class _Counted(msgspec.Struct):
    meters: dict[str, Definition] = {}


def check_meters(log: ControlLog, newest: int, catalog: Catalog, name: str) -> None:
    """Raise CatalogError where a meter can't go on with what its name counted in versions up to `newest`, or before."""
    if problems := [Problem(name, 0, 0, "meters", clash) for clash in clashes(log, newest, catalog)]:
        raise CatalogError(problems)


def clashes(log: ControlLog, newest: int, catalog: Catalog) -> list[str]:
    """Return why meters of the catalog can't follow the versions up to `newest`; empty where all can."""
    known = {**_versions(log, newest), **_counted(log)}
    found = (
        explain_clash(Meter(meter.name, "", *known[meter.name]), meter)
        for meter in catalog.meters
        if meter.name in known
    )
    return [clash for clash in found if clash]


def note_counted(log: ControlLog, meters: dict[str, Definition]) -> None:
    """Note for everyone who applies catalogs to this log what the flow's state has counted."""
    known = _counted(log)
    if {**known, **meters} != known:
        log.keep(COUNTED, msgspec.json.encode(_Counted({**known, **meters})))


def definitions(meters: Sequence[Meter]) -> dict[str, Definition]:
    return {meter.name: (meter.kind, meter.key) for meter in meters}


def _versions(log: ControlLog, newest: int) -> dict[str, Definition]:
    summary = _read(_SUMMARY, log.memo(VERSIONS)) or _Summary()
    first = summary.through + 1
    for number in range(first, newest + 1):
        version = log.catalog(number)
        for name, definition in definitions(parse_meters(version.text) if version else ()).items():
            summary.meters.setdefault(name, definition)
    if newest >= first:
        log.keep(VERSIONS, msgspec.json.encode(_Summary(newest, summary.meters)))
    return summary.meters


def _counted(log: ControlLog) -> dict[str, Definition]:
    return (_read(_COUNTED, log.memo(COUNTED)) or _Counted()).meters


_SUMMARY: Final = msgspec.json.Decoder(_Summary)
_COUNTED: Final = msgspec.json.Decoder(_Counted)


def _read(decoder: "msgspec.json.Decoder[T]", body: bytes | None) -> T | None:
    """Return a memo, None where it was not kept or can't be read."""
    try:
        return None if body is None else decoder.decode(body)
    except msgspec.MsgspecError:
        return None
