"""One customer's limit on one meter, changed in the catalog's text: everything else stays as it was written.

The text is changed where YAML's marks say, comments and all, and then read again: what comes of it must differ from
what was there in nothing but that limit. So this never has to be trusted. New values are written in flow style, which
is YAML wherever it stands.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import yaml

from tidegate.operators.model.catalog import Catalog, Customer
from tidegate.settings.catalog.file import CatalogError, Problem, parse_catalog
from tidegate.settings.catalog.yaml_nodes import LOADER, NULLS, Plain, quoted

Entry = Mapping[str, Any]
"""A limit as the catalog's file has it under `limits`: quantities as int or decimal text."""

DECIMAL: Final = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")
SIMPLE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NOT_EDITED: Final = "cannot be changed in this text as it is written; apply a whole catalog with the change"


class _Cut(NamedTuple):
    """What stands between two places of the text is to be replaced by this."""

    start: int
    end: int
    text: str


def override_of(text: str, customer: str, meter: str) -> Entry | None:
    """Return the customer's own entry for the meter, its scalars as they are written; None where there is none."""
    node = _found(_root(text), ("customers", customer, "limits", meter))
    return _plain(node) if node is not None and not _is_null(node) else None


def with_override(text: str, customer: str, meter: str, entry: Entry | None) -> str:
    """Return the text with the customer's limit on the meter set to `entry`, or taken out.

    CatalogError where the catalog would be wrong with it.
    """
    before = parse_catalog(text)
    edited = _without(text, customer, meter) if entry is None else _with(text, customer, meter, entry)
    after = parse_catalog(edited)
    if not _differ_only_in(before, after, customer, meter):
        raise CatalogError([Problem("catalog", 0, 0, f"customers[{customer!r}].limits", _NOT_EDITED)])
    return edited


def _with(text: str, customer: str, meter: str, entry: Entry) -> str:
    """Down to the deepest mapping that is there, and from it on what is missing, in one piece."""
    way = ("customers", customer, "limits", meter)
    node, depth = _root(text), 0
    while depth < len(way):
        child = _child(node, way[depth])
        if child is None:
            break
        node, depth = child, depth + 1
    value = _written(entry)
    for name in reversed(way[depth + 1 :]):
        value = f"{{{_key(name)}: {value}}}"
    if depth == len(way) or _is_null(node):
        if depth < len(way):
            value = f"{{{_key(way[depth])}: {value}}}"
        return _applied(text, _value_cut(text, node, value))
    return _applied(text, _insertion(text, node, way[depth], value))


def _without(text: str, customer: str, meter: str) -> str:
    """Return the text without the entry: the customer's other limits are written again, or an empty mapping."""
    holder = _found(_root(text), ("customers", customer, "limits"))
    if holder is None or _child(holder, meter) is None:
        return text
    rest = {key.value: _plain(node) for key, node in holder.value if key.value != meter}
    return _applied(text, _value_cut(text, holder, _written(rest)))


def _applied(text: str, cut: _Cut) -> str:
    return text[: cut.start] + cut.text + text[cut.end :]


def _value_cut(text: str, node: yaml.Node, value: str) -> _Cut:
    """Replace a node, from its begin to the end of the last node that is written in it."""
    start, end = node.start_mark.index, _end(node)
    # A value that is empty stands right behind the colon.
    space = " " if start > 0 and not text[start - 1].isspace() else ""
    return _Cut(start, end, space + value)


def _insertion(text: str, node: yaml.Node, key: str, value: str) -> _Cut:
    """As the first entry of the mapping: there its begin and its indentation are known for certain."""
    assert isinstance(node, yaml.MappingNode)
    at = node.start_mark.index
    if node.flow_style:
        comma = ", " if node.value else ""
        return _Cut(at + 1, at + 1, f"{_key(key)}: {value}{comma}")
    indent = " " * node.start_mark.column
    return _Cut(at, at, f"{_key(key)}: {value}\n{indent}")


def _root(text: str) -> yaml.Node:
    node = yaml.compose(text, Loader=LOADER)
    assert node is not None, "a catalog that was parsed is not empty"
    return node


def _child(node: yaml.Node, name: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == name:
                return value  # type: ignore[no-any-return]
    return None


def _found(node: yaml.Node | None, way: tuple[str, ...]) -> yaml.Node | None:
    for name in way:
        node = _child(node, name) if node is not None else None
    return node


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value in NULLS


def _end(node: yaml.Node) -> int:
    """Where the last scalar or bracket of a node ends: a block's own mark is behind the white space after it."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(node, yaml.MappingNode) else last)


def _plain(node: yaml.Node) -> Any:
    """Scalars as they are written, so that no number passes through a float; without quotes they are `Plain`."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if _is_null(node):
        return None
    quoted = isinstance(node, yaml.ScalarNode) and node.style
    return node.value if quoted else Plain(node.value)


def _written(value: Any) -> str:
    """In one line: as JSON, but for plain keys and decimals, which need no quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)}: {_written(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    if isinstance(value, Plain) or (isinstance(value, str) and DECIMAL.fullmatch(value)):
        return value
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def _key(name: str) -> str:
    return name if SIMPLE.fullmatch(name) else quoted(name)


def _differ_only_in(before: Catalog, after: Catalog, customer: str, meter: str) -> bool:
    """Whether two catalogs are one but for this limit. A customer who was none before has the default plan."""
    return _leaving_out(before, customer, meter) == _leaving_out(after, customer, meter)


def _leaving_out(catalog: Catalog, customer: str, meter: str) -> Catalog:
    known = catalog.customers.get(customer)
    others = {name: one for name, one in catalog.customers.items() if name != customer}
    if known is not None:
        limits = {name: limit for name, limit in known.limits.items() if name != meter}
        bare = replace(known, limits=limits)
        if bare != Customer(customer, catalog.default_plan or ""):
            others[customer] = bare
    return replace(catalog, customers=others)
