"""A YAML document that remembers where each key stands, so that a complaint names file, line and key."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from shared.errors import Misconfigured

Path = tuple[str | int, ...]
STRING = "tag:yaml.org,2002:str"
MERGE = "tag:yaml.org,2002:merge"
MAX_DEPTH = 20


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data and the line of every key in it."""

    data: Any
    lines: Mapping[Path, int]
    source: str

    def complaint(self, path: Path, problem: str) -> Misconfigured:
        """An error at a key, or at the nearest key around it that the document has."""
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line, key = self.lines.get(known, 1), dotted(path)
        where = f"{self.source}, line {line}" + (f", {key}" if key else "")
        return Misconfigured(f"{where}: {problem}", file=self.source, line=line, key=key)


def parse(text: str, *, source: str) -> Document:
    """Read one YAML document.

    Raises: Misconfigured for broken YAML, a key that is there twice or is no text, or a document that is no mapping.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise Misconfigured(f"{source}, line 1: expected a mapping with endpoints, models and chains", file=source)
        document = Document(None, dict(_lines(root, (), source)), source)
        return Document(loader.construct_document(root), document.lines, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        problem = " ".join(part for part in (error.problem, error.context) if part)
        raise Misconfigured(f"{source}, line {line}: not YAML: {problem}", file=source, line=line) from None
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise Misconfigured(f"{source}, line 1: not YAML: {words}", file=source, line=1) from None


def dotted(path: Iterable[str | int]) -> str:
    """A path as people write it: `chains.default[1]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at what was perhaps meant, or what there is."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"


def _lines(node: yaml.Node, path: Path, source: str) -> Iterable[tuple[Path, int]]:
    if len(path) > MAX_DEPTH:  # an alias to what it stands in has no end
        raise Misconfigured(f"{source}, line {node.start_mark.line + 1}: nested too deep", file=source)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == MERGE:
                continue
            line, where = key.start_mark.line + 1, (*path, str(key.value))
            if not isinstance(key, yaml.ScalarNode) or key.tag != STRING:
                problem = "a key must be text; put it in quotes"
                raise Misconfigured(f"{source}, line {line}, {dotted(where)}: {problem}", file=source, line=line)
            if key.value in seen:
                problem = f"already set in line {seen[key.value]}"
                raise Misconfigured(f"{source}, line {line}, {dotted(where)}: {problem}", file=source, line=line)
            seen[key.value] = line
            yield where, line
            yield from _lines(value, where, source)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield (*path, position), item.start_mark.line + 1
            yield from _lines(item, (*path, position), source)
