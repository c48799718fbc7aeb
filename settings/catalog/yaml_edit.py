"""Changes a YAML text in places and leaves the rest as its author wrote it, comments and all.

Only what the catalog is made of: mappings by text keys, lists, scalars. What is put in is written on one line. Where a
mapping stands on one line already (`{plan: pro}`), that line is written anew, with what else it said.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tidegate.settings.catalog.yaml_nodes import quoted

# Texts that no reader takes for anything else.
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z")
WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"}
ENDLESS = 1 << 30
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Into(dict[str, Any]):
    """Values that go into the mapping that is there; any other mapping takes the place of what is there."""


class YamlEdit:
    """Changes to one text; all places are as in the text that it began with."""

    def __init__(self, text: str) -> None:
        self._text = text if text.endswith("\n") or not text else f"{text}\n"
        self._root = yaml.compose(self._text, Loader=LOADER)
        self._edits: list[tuple[int, int, str]] = []
        self._behind = ""

    def put(self, values: Into) -> None:
        """Set keys of the text's own mapping; what is `Into` goes into what is there. Once for a text."""
        self._set(self._root, values)

    def append(self, key: str, items: Sequence[Any]) -> None:
        """Add items to the list under a key of the text's own mapping."""
        if not items:
            return
        node = _child(self._root, key)
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._set(self._root, {key: list(items)})
        elif node.flow_style:
            parts = [self._one_line(item) for item in node.value] + [flow(item) for item in items]
            self._put(node, f"[{', '.join(parts)}]")
        else:
            indent = " " * node.start_mark.column
            self._insert_behind(node, "".join(f"{indent}- {flow(item)}\n" for item in items))

    def text(self) -> str:
        """Return the text with all changes."""
        parts, at = [], 0
        for start, end, new in sorted(self._edits, key=lambda edit: edit[0]):
            parts += [self._text[at:start], new]
            at = end
        return "".join([*parts, self._text[at:], self._behind])

    def _set(self, node: Any, values: Mapping[str, Any]) -> None:
        if not isinstance(node, yaml.MappingNode) or not node.value:
            if node is None:
                self._behind += "".join(f"{scalar(key)}:{_block(value)}" for key, value in values.items())
            else:
                self._put(node, flow(values))
        elif node.flow_style:
            self._put(node, self._merged(node, values))
        else:
            self._set_in_block(node, values)

    def _set_in_block(self, node: Any, values: Mapping[str, Any]) -> None:
        indent = " " * node.start_mark.column
        new = []
        for key, value in values.items():
            known = _child(node, key)
            if known is None:
                new.append(
                    f"{indent}{scalar(key)}:{_block(value) if not indent else f' {flow(value)}' + chr(10)}"
                )
            elif isinstance(value, Into):
                self._set(known, value)
            else:
                self._put(known, flow(value))
        if new:
            self._insert_behind(node, "".join(new))

    def _put(self, node: Any, new: str) -> None:
        """Put a text in the place of a node; a block's place begins behind its key's colon."""
        start = node.start_mark.index
        is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
        before = self._text[:start].rstrip() if is_block else self._text[:start]
        if before.endswith(":"):
            start, new = len(before), f" {new}"
        elif is_block:
            # A comment stands in between; the value has to be further in than its key.
            new = f"  {new}"
        self._edits.append((start, _end(node), new))

    def _merged(self, node: Any, values: Mapping[str, Any]) -> str:
        """Return a mapping on one line, with these values in it."""
        parts = {key.value: self._one_line(value) for key, value in node.value}
        for key, value in values.items():
            known = _child(node, key)
            is_merged = isinstance(value, Into) and isinstance(known, yaml.MappingNode)
            parts[key] = self._merged(known, value) if is_merged else flow(value)
        return "{" + ", ".join(f"{scalar(key)}: {text}" for key, text in parts.items()) + "}"

    def _one_line(self, node: Any) -> str:
        """Return a node as it was written, on one line."""
        written = self._text[node.start_mark.index : _end(node)]
        is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
        if not is_block and "\n" not in written:
            return written
        return (
            str(yaml.serialize(_flowed(node), Dumper=yaml.SafeDumper, width=ENDLESS))
            .removesuffix("...\n")
            .strip()
        )

    def _insert_behind(self, node: Any, lines: str) -> None:
        """Behind the line that the node ends on, with what comment it has."""
        end = self._text.find("\n", _end(node))
        at = len(self._text) if end < 0 else end + 1
        self._edits.append((at, at, lines))


def flow(value: Any) -> str:
    """Return a value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """Return a text, number or boolean, in quotes where a reader might take a text for something else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return str(value)
    is_plain = PLAIN.fullmatch(value) and value.lower() not in WORDS
    return value if is_plain else quoted(value)


def _block(value: Any) -> str:
    """Return a value as a section of the text: an item or entry a line."""
    if isinstance(value, Mapping) and value:
        return "\n" + "".join(f"  {scalar(key)}: {flow(item)}\n" for key, item in value.items())
    if isinstance(value, list) and value:
        return "\n" + "".join(f"  - {flow(item)}\n" for item in value)
    return f" {flow(value)}\n"


def _child(node: Any, key: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                return value
    return None


def _flowed(node: Any) -> Any:
    if isinstance(node, yaml.MappingNode):
        pairs = [(_flowed(key), _flowed(value)) for key, value in node.value]
        return yaml.MappingNode(node.tag, pairs, flow_style=True)
    if isinstance(node, yaml.SequenceNode):
        return yaml.SequenceNode(node.tag, [_flowed(item) for item in node.value], flow_style=True)
    return node


def _end(node: Any) -> int:
    """Where the node's own text ends; a block's mark lies behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return end
