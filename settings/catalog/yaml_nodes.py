"""YAML as a tree that knows its lines, in which every scalar is still the text that was written.

Whether `no`, `0123`, `0.1` or `2026-01-31` is a word, a number or a date depends on the field, so the
field decides: nothing is guessed here and no number passes through a float. Read from PyYAML's events
and not by its loaders: events have marks and untouched text, and libyaml's loader crashes the process
on deep nesting. One document, no aliases, merge keys or tags, so that each line says what it says.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import yaml

from tidegate.operators.model.errors import one_line

DEPTH_MAX: Final = 32
LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
STANDARD: Final = "tag:yaml.org,2002:"
# What YAML forbids, folds as a line break or drops; JSON, whose quoting is YAML's else, writes it as it is.
UNWRITTEN: Final = re.compile(
    r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
NULLS: Final = ("", "~", "null", "Null", "NULL")

Place = tuple[str | int, ...]
Value = str | list["Node"] | dict[str, "Node"] | None


class Plain(str):
    """Text that was written without quotes: where a field allows it a number, true or false."""

    __slots__ = ()


class Mark(NamedTuple):
    """A place in a text; both count from 1."""

    line: int
    column: int


TOP: Final = Mark(1, 1)


class Fault(NamedTuple):
    """What is wrong at a place of the tree, and where that stands in the text."""

    mark: Mark
    place: Place
    message: str


@dataclass(slots=True, frozen=True)
class Node:
    """A value and where a person looks for it: a scalar at itself, a mapping or list at its `key`."""

    mark: Mark
    key: Mark
    value: "Value"

    def plain(self) -> Any:
        """Return the value as dicts, lists, `Plain`, `str` and None."""
        value = self.value
        if isinstance(value, dict):
            return {name: node.plain() for name, node in value.items()}
        return [node.plain() for node in value] if isinstance(value, list) else value

    def child(self, name: str) -> str | None:
        """Return the text under `name`, where there is one."""
        found = self.value.get(name) if isinstance(self.value, dict) else None
        return str(found.value) if found and isinstance(found.value, str) else None

    def find(self, where: Sequence[str | int]) -> tuple["Node", Place]:
        """Return the deepest node on the way `where`, and its place; what is no key on the way is passed over."""
        node, place = self, list[str | int]()
        for part in where:
            match node.value, part:
                case dict(entries), str(name) if name in entries:
                    node = entries[name]
                case list(items), int(index) if index < len(items):
                    node = items[index]
                case _:
                    continue
            place.append(part)
        return node, tuple(place)


def quoted(text: str) -> str:
    """Return the text as a YAML scalar in double quotes, on one line, whatever it holds."""
    return UNWRITTEN.sub(_escaped, json.dumps(text, ensure_ascii=False))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def read(text: str) -> tuple[Node | None, list[Fault]]:
    """Return the document's tree, and keys that are there twice (the first one counts).

    No tree where the text is empty or, with a fault that says why, cannot be read.
    """
    return _read(text, "")


def read_section(text: str, key: str) -> Node | None:
    """Return the value of one key of the document's own mapping, without reading what comes behind it.

    None where it is not there. Of a text that cannot be read, what stands before the fault counts.
    """
    root, _ = _read(text, key)
    return root.value.get(key) if root is not None and isinstance(root.value, dict) else None


def _read(text: str, until: str) -> tuple[Node | None, list[Fault]]:
    forbidden = _forbidden(text)
    if forbidden:
        return None, [forbidden]
    reader = _Reader()
    try:
        for event in yaml.parse(text, Loader=LOADER):
            reader.take(event)
            if until and reader.has(until):
                break
    except _Stop as stop:
        return None, [*reader.faults, stop.fault]
    except yaml.YAMLError as error:
        return None, [*reader.faults, _unreadable(error)]
    return reader.root, reader.faults


class _Stop(Exception):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault


@dataclass(slots=True)
class _Open:
    """A mapping or list that is not yet closed; in a mapping, the key whose value comes next."""

    node: Node
    key: str | None = None
    key_mark: Mark = TOP

    def awaits_key(self) -> bool:
        return self.key is None and type(self.node.value) is dict

    def place(self) -> Place:
        """Return the key of the value that is being read, or the place in the list of the one read last."""
        match self.node.value, self.key:
            case list(items), _:
                return (len(items) - 1,) if items else ()
            case _, str(name):
                return (name,)
            case _:
                return ()


class _Reader:
    """Takes the events of one document, in order."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.faults: list[Fault] = []
        self._open: list[_Open] = []

    def take(self, event: Any) -> None:
        """Take the next event; by its exact type, as files have a hundred thousand."""
        at, tag, kind = event.start_mark, getattr(event, "tag", None), type(event)
        mark = Mark(at.line + 1, at.column + 1) if at else TOP
        if tag is not None and tag != "!":
            short = tag.replace(STANDARD, "!!")
            self._stop(mark, f"has the tag {short}; write the value plainly, or in quotes as text")
        if kind is yaml.ScalarEvent:
            self._scalar(event, mark)
        elif kind is yaml.MappingStartEvent:
            self._descend(mark, {})
        elif kind is yaml.SequenceStartEvent:
            self._descend(mark, [])
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._open.pop()
            self._done()
        elif kind is yaml.DocumentStartEvent and self.root:
            self._stop(mark, "a second document begins; needs one")
        elif kind is yaml.AliasEvent:
            self._stop(mark, f"has the alias *{event.anchor}; write the value out, or share a plan")

    def _scalar(self, event: Any, mark: Mark) -> None:
        if self._open and self._open[-1].awaits_key():
            self._begin(event, mark)
            return
        text, plain = event.value, event.implicit[0]
        self._add(mark, None if plain and text in NULLS else Plain(text) if plain else text)
        self._done()

    def has(self, key: str) -> bool:
        """Whether the value of this key of the document's own mapping is complete."""
        if len(self._open) != 1 or self._open[0].key is not None:
            return False
        value = self._open[0].node.value
        return isinstance(value, dict) and key in value

    def _begin(self, event: yaml.ScalarEvent, mark: Mark) -> None:
        if event.value == "<<" and event.implicit[0]:
            self._stop(mark, "has a merge key <<; write the values out, or share a plan")
        self._open[-1].key, self._open[-1].key_mark = event.value, mark

    def _descend(self, mark: Mark, value: dict[str, Node] | list[Node]) -> None:
        if self._open and self._open[-1].awaits_key():
            self._stop(mark, "a key needs to be text")
        if len(self._open) == DEPTH_MAX:
            self._stop(mark, f"is nested deeper than {DEPTH_MAX} levels")
        self._open.append(_Open(self._add(mark, value)))

    def _add(self, mark: Mark, value: "Value") -> Node:
        if not self._open:
            self.root = Node(mark, mark, value)
            return self.root
        parent = self._open[-1]
        if isinstance(parent.node.value, list):
            node = Node(mark, mark, value)
            parent.node.value.append(node)
            return node
        assert isinstance(parent.node.value, dict) and parent.key is not None
        node = Node(mark if isinstance(value, str) else parent.key_mark, parent.key_mark, value)
        first = parent.node.value.setdefault(parent.key, node)
        if first is not node:
            self._fault(parent.key_mark, f"is there twice, first on line {first.key.line}")
        return node

    def _done(self) -> None:
        """Note that the value of the pending key, if there is one, is complete."""
        if self._open:
            self._open[-1].key = None

    def _fault(self, mark: Mark, message: str) -> None:
        place = tuple(part for level in self._open for part in level.place())
        self.faults.append(Fault(mark, place, message))

    def _stop(self, mark: Mark, message: str) -> None:
        self._fault(mark, message)
        raise _Stop(self.faults.pop())


def _forbidden(text: str) -> Fault | None:
    """Return the first character that YAML has no place for; found here, as libyaml counts in bytes."""
    found = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if not found:
        return None
    before = text[: found.start()].split("\n")
    message = f"needs YAML: there is a character U+{ord(found[0]):04X}, which it forbids"
    return Fault(Mark(len(before), len(before[-1]) + 1), (), message)


def _unreadable(error: yaml.YAMLError) -> Fault:
    at = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    why = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
    return Fault(Mark(at.line + 1, at.column + 1) if at else TOP, (), f"needs YAML: {one_line(why)}")
