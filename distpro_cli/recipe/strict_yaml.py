"""YAML as recipes use it: YAML 1.2 core types, no objects, bounded size, every value with its line.

PyYAML parses; what its constructors leave open (duplicate keys, YAML 1.1's `yes` and `3e-4`, tags that build
objects, alias bombs) is closed here by turning nodes into plain values ourselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.resolver import BaseResolver

KeyPath = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 20_000

_TOO_MANY = f"more than {MAX_VALUES} values or {MAX_BYTES // 1024} KiB once its aliases are expanded"

CORE = "tag:yaml.org,2002:"
KINDS = ("str", "int", "float", "bool", "null", "seq", "map")
MERGE_TAG = f"{CORE}merge"

# Chapter 10.3 of the YAML 1.2.2 specification, and the merge key.
PATTERNS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "merge": r"<<",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
REGEXES = {name: re.compile(f"^(?:{pattern})$") for name, pattern in PATTERNS.items()}


class CoreResolver(BaseResolver):
    """Decides which plain scalars are numbers, booleans and null; the same for reading and for writing."""


for _name, _regex in REGEXES.items():
    CoreResolver.add_implicit_resolver(f"{CORE}{_name}", _regex, None)


class StrictYamlError(Exception):
    """The text is not YAML, or exceeds the limits: there is no value to continue with."""

    def __init__(self, message: str, line: int | None = None) -> None:
        self.message = message
        self.line = line
        super().__init__(message)


@dataclass(frozen=True)
class Mistake:
    """Something wrong at one place of otherwise readable YAML."""

    path: KeyPath
    line: int
    message: str


@dataclass
class Document:
    """A YAML document as plain values.

    Attributes:
        value: Nested dicts, lists and scalars.
        lines: Line number, from 1, of every key and list item by its path.
        mistakes: Duplicate keys, refused tags, keys that are not text.
        unread: Paths whose value could not be made; they hold None.
    """

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    unread: set[KeyPath] = field(default_factory=set)


class NodeLoader(yaml.SafeLoader):
    """PyYAML's parser with the core resolver and bounds on nesting and on the number of values."""

    yaml_implicit_resolvers = CoreResolver.yaml_implicit_resolvers
    depth = 0
    num_values = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Composes one node and what is below it."""
        self.depth += 1
        self.num_values += index is not None  # keys, and the document itself, have none
        if self.depth > MAX_DEPTH or self.num_values > MAX_VALUES:
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            beyond = f"nested more than {MAX_DEPTH} deep" if self.depth > MAX_DEPTH else _TOO_MANY
            raise StrictYamlError(beyond, line)
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class CoreDumper(yaml.SafeDumper):
    """Writes plain what `read_yaml` reads back as the same value, and quotes the rest."""

    yaml_implicit_resolvers = CoreResolver.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """Writes repeated values out each time."""
        return True


def write_yaml(value: Any, *, flow: bool | None = False) -> str:
    """Returns `value` (dicts, lists, scalars) as YAML in the order of its keys; `read_yaml` gives it back.

    Args:
        value: What to write.
        flow: Whether lists and sections are written in brackets, all on one line; None: those that hold scalars alone.
    """
    options: dict[str, Any] = {"Dumper": CoreDumper, "sort_keys": False, "default_flow_style": flow, "width": 10_000}
    text: str = yaml.dump(value, allow_unicode=True, **options)
    if any(mark in text for mark in "\x85\u2028\u2029"):  # PyYAML leaves these as they are, and a reader folds them
        text = yaml.dump(value, **options)
    return text


def read_yaml(text: str) -> Document:
    """Reads one YAML document.

    Raises:
        StrictYamlError: Syntax errors, several documents, or beyond `MAX_BYTES`, `MAX_DEPTH`, `MAX_VALUES`.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise StrictYamlError(f"larger than {MAX_BYTES // 1024} KiB, the limit for a recipe")
    loader = None
    try:
        loader = NodeLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _explain(error) from None
    except (ValueError, OverflowError):  # PyYAML takes any eight digits
        line = None if loader is None else loader.line + 1
        raise StrictYamlError("not YAML: an escape such as \\U00110000 names no character", line) from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", None) or str(error).splitlines()[0]
        position = getattr(error, "position", None)
        line = text.count("\n", 0, position) + 1 if isinstance(position, int) else None
        raise StrictYamlError(f"not YAML: {reason}", line) from None
    reader = _Reader()
    if node is not None:
        reader.document.value = reader.read(node, ())
    return reader.document


def _explain(error: yaml.MarkedYAMLError) -> StrictYamlError:
    """Turns PyYAML's report into one line."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    problem = " ".join((error.problem or "unreadable").split())
    if problem == "but found another document":
        return StrictYamlError("more than one YAML document ('---'); a recipe is one document", line)
    if "'\\t'" in problem:
        problem += " (indent with spaces, not tabs)"
    if problem.startswith("mapping values are not allowed"):
        problem += " (a second ': ' on the line, or a wrong indentation? put text with ': ' in quotes)"
    return StrictYamlError(f"not YAML: {problem}", line)


class _Reader:
    """Turns nodes into plain values; collects lines and mistakes."""

    def __init__(self) -> None:
        self.document = Document()
        self._num_values = 0
        self._num_characters = 0
        self._open: set[int] = set()

    def read(self, node: Node, path: KeyPath) -> Any:
        """Returns the value of `node`, which stands at `path`."""
        line = node.start_mark.line + 1
        kind = node.tag.removeprefix(CORE)
        if node.tag != MERGE_TAG and kind not in KINDS:
            shown = f"!!{kind}" if node.tag.startswith(CORE) else node.tag
            return self._refuse(path, line, f"tag '{shown}' is not allowed; a recipe holds plain values only")
        if isinstance(node, ScalarNode):
            return self._scalar(node, kind, path, line)
        if (kind == "seq") != isinstance(node, SequenceNode):
            return self._refuse(path, line, f"tag '!!{kind}' does not fit the value")
        if len(path) >= MAX_DEPTH:
            raise StrictYamlError(f"nested more than {MAX_DEPTH} deep", line)
        with self._inside(node):
            if isinstance(node, SequenceNode):
                return self._list(node, path)
            value: dict[str, Any] = {}
            self._fill(value, node, path)
            return value

    @contextmanager
    def _inside(self, node: Node) -> Iterator[None]:
        """Refuses an alias inside of what it stands for."""
        if id(node) in self._open:
            raise StrictYamlError("an alias contains itself", node.start_mark.line + 1)
        self._open.add(id(node))
        yield
        self._open.remove(id(node))

    def _count(self, node: Node) -> None:
        self._num_values += 1
        if isinstance(node, ScalarNode):
            self._num_characters += len(node.value)
        if self._num_values > MAX_VALUES or self._num_characters > MAX_BYTES:
            raise StrictYamlError(_TOO_MANY, node.start_mark.line + 1)

    def _refuse(self, path: KeyPath, line: int, message: str) -> None:
        self._mistake(path, line, message)
        self.document.unread.add(path)

    def _mistake(self, path: KeyPath, line: int, message: str) -> None:
        self.document.mistakes.append(Mistake(path, line, message))

    def _scalar(self, node: ScalarNode, kind: str, path: KeyPath, line: int) -> Any:
        text = node.value
        if kind in ("str", "merge"):
            if _SURROGATE.search(text):
                return self._refuse(path, line, "an escape such as \\ud800 names half a character; write the whole one")
            return text
        if kind in REGEXES and REGEXES[kind].fullmatch(text):
            try:
                return _CONVERT[kind](text)
            except (ValueError, OverflowError):
                return self._refuse(path, line, "found a number with too many digits")
        if kind == "float" and REGEXES["int"].fullmatch(text):
            return float(text)
        return self._refuse(path, line, f"tag '!!{kind}' does not fit the value '{text[:40]}'")

    def _list(self, node: SequenceNode, path: KeyPath) -> list[Any]:
        values = []
        for index, item in enumerate(node.value):
            self._count(item)
            self.document.lines[*path, index] = item.start_mark.line + 1
            values.append(self.read(item, (*path, index)))
        return values

    def _fill(self, value: dict[str, Any], node: Node, path: KeyPath) -> None:
        """Adds to `value` the keys of a mapping that it has not; those that the mapping merges come last."""
        first_lines: dict[str, int] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            self._count(value_node)
            line, key = key_node.start_mark.line + 1, key_node.value
            if key_node.tag == MERGE_TAG:
                merged += value_node.value if isinstance(value_node, SequenceNode) else [value_node]
            elif key_node.tag != f"{CORE}str" or not isinstance(key_node, ScalarNode):
                shown = f"'{key[:40]}'" if isinstance(key_node, ScalarNode) else "a list or section"
                self._mistake(path, line, f"found the key {shown}; keys are text, write it in quotes if it is meant")
            elif _SURROGATE.search(key):
                self._mistake(path, line, "found a key with half a character; write the whole one")
            elif key in first_lines:
                message = f"duplicate key; it is given in line {first_lines[key]} already, keep one of the two"
                self._mistake((*path, key), line, message)
            else:
                first_lines[key] = line
                if key not in value:
                    self.document.lines[*path, key] = line
                    value[key] = self.read(value_node, (*path, key))
        for source in merged:
            self._count(source)
            if isinstance(source, MappingNode) and source.tag == f"{CORE}map":
                with self._inside(source):
                    self._fill(value, source, path)
            else:
                self._mistake(path, source.start_mark.line + 1, "'<<' merges sections; found something else")


_CONVERT: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, {"0x": 16, "0o": 8}.get(text[:2], 10)),
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}
