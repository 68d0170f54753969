"""The YAML file of nodes: its shape, and a complaint that names file, line and key for whatever does not fit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy.engine import URL, make_url

from shared.db.facts import NodeAddress
from shared.db.knobs import DbKnobs
from shared.db.topology import Layout, Rules, layout_of, node_name
from shared.errors import Misconfigured

Key = tuple[str | int, ...]
Shape = TypeVar("Shape", bound=BaseModel)
MAX_DEPTH = 10


class Strict(BaseModel):
    """A mapping that knows its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Node(Strict):
    host: Annotated[str, Field(min_length=1, max_length=255)]
    port: Annotated[int, Field(ge=1, le=65535)] = 5432
    direct_host: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    direct_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    pool_size: Annotated[int, Field(ge=1, le=1000)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    weight: Annotated[int, Field(ge=0, le=1000)] = 1


class _RoutingRules(Strict):
    write: Literal["primary"] = "primary"
    read: Literal["replicas", "primary"] = "replicas"
    read_after_write: Literal["primary", "replicas"] = "replicas"
    transaction: Literal["primary"] = "primary"


class ClusterShape(Strict):
    """The nodes of one cluster."""

    primary: _Node
    replicas: tuple[_Node, ...] = ()
    routing_rules: _RoutingRules = _RoutingRules()

    @model_validator(mode="after")
    def _some_replica_is_read_from(self) -> "ClusterShape":
        if self.replicas and self.routing_rules.read == "replicas" and not any(one.weight for one in self.replicas):
            raise ValueError("every replica has weight 0, and reads go to replicas: give one of them a weight")
        return self


def read_layout(knobs: DbKnobs) -> Layout:
    """The nodes of FLEET_DB_CONFIG, else of FLEET_DB_URL and FLEET_DB_REPLICAS.

    Raises: Misconfigured, naming file, line and key.
    """
    if not knobs.config:
        return layout_of(knobs)
    text, source = text_of(knobs.config, variable="FLEET_DB_CONFIG")
    return parse_layout(text, source=source, knobs=knobs)


def text_of(path: str, *, variable: str) -> tuple[str, str]:
    """A file's text, and what to call the file. Raises: Misconfigured, naming the variable that names the file."""
    try:
        return Path(path).read_text("utf-8"), str(Path(path))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise Misconfigured(f"{variable}: {path} cannot be read: {why}", variable=variable) from None


def parse_layout(text: str, *, source: str, knobs: DbKnobs) -> Layout:
    """The nodes and rules of a file's text; user, database and parameters are those of `knobs.url`.

    Raises: Misconfigured, naming source, line and key.
    """
    read, lines = validated(text, source=source, shape=ClusterShape)
    return layout_from(read, source=source, lines=lines, knobs=knobs)


def validated(text: str, *, source: str, shape: type[Shape]) -> tuple[Shape, dict[Key, int]]:
    """What a YAML text says, and the line of each of its keys. Raises: Misconfigured, naming source, line and key."""
    data, lines = _loaded(text, source)
    try:
        return shape.model_validate(data), lines
    except ValidationError as error:
        problems = error.errors(include_url=False)
        problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
        raise complaint(source, lines, tuple(problem["loc"]), _words(problem)) from None


def layout_from(
    read: ClusterShape, *, source: str, lines: dict[Key, int], knobs: DbKnobs, under: Key = ()
) -> Layout:  # fmt: skip
    """The nodes of one cluster.

    Args:
        under: Where in the file it stands.

    Raises: Misconfigured for a node that is listed twice.
    """
    template = make_url(knobs.url)
    nodes = [_address(template, one, knobs) for one in (read.primary, *read.replicas)]
    known: set[str] = set()
    for position, node in enumerate(nodes):
        key: Key = (*under, "replicas", position - 1) if position else (*under, "primary")
        for name in dict.fromkeys((node.name, node_name(node.url))):
            if name in known:
                raise complaint(source, lines, key, f"{name} is listed already")
            known.add(name)
        if knobs.pooler != "none" and node.direct_url == node.url:
            raise complaint(source, lines, key, "behind a pooler it needs direct_port, or direct_host: the way past it")
    rules = Rules(read=read.routing_rules.read, read_after_write=read.routing_rules.read_after_write)
    return Layout(tuple(nodes), rules)


def _address(template: URL, node: _Node, knobs: DbKnobs) -> NodeAddress:
    url = template.set(host=node.host, port=node.port).render_as_string(hide_password=False)
    direct = template.set(host=node.direct_host or node.host, port=node.direct_port or node.port)
    return NodeAddress(
        node.name or f"{node.host}:{node.port}",
        url,
        node.weight,
        node.pool_size or knobs.pool_size,
        direct.render_as_string(hide_password=False),
    )


def _loaded(text: str, source: str) -> tuple[Any, dict[Key, int]]:
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise Misconfigured(f"{source}, line 1: expected a mapping of keys", file=source, line=1)
        lines = dict(_lines(root, (), source))
        return loader.construct_document(root), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        problem = " ".join(part for part in (error.problem, error.context) if part)
        raise Misconfigured(f"{source}, line {line}: not YAML: {problem}", file=source, line=line) from None
    except yaml.YAMLError as error:
        raise Misconfigured(f"{source}, line 1: not YAML: {' '.join(str(error).split())}", file=source) from None


def _lines(node: yaml.Node, path: Key, source: str) -> Iterator[tuple[Key, int]]:
    if len(path) > MAX_DEPTH:  # an alias to what it stands in has no end
        raise Misconfigured(f"{source}, line {node.start_mark.line + 1}: nested too deep", file=source)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where, line = (*path, str(key.value)), key.start_mark.line + 1
            if any(other.value == key.value for other, _ in node.value if other is not key):
                raise Misconfigured(f"{source}, line {line}, {_dotted(where)}: this key is set twice", file=source)
            yield where, line
            yield from _lines(value, where, source)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield (*path, position), item.start_mark.line + 1
            yield from _lines(item, (*path, position), source)


def _words(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "no such key"
    if problem["type"] == "missing":
        return "this key is missing"
    words = problem["msg"].removeprefix("Value error, ")
    got = f" (got {problem['input']!r})" if isinstance(problem["input"], str | int | float) else ""
    return f"{words[0].lower()}{words[1:]}{got}"


def complaint(source: str, lines: dict[Key, int], key: Key, problem: str) -> Misconfigured:
    """The error that names source, line and key."""
    known = key
    while known and known not in lines:
        known = known[:-1]
    line = lines.get(known, 1)
    where = f"{source}, line {line}" + (f", {_dotted(key)}" if key else "")
    return Misconfigured(f"{where}: {problem}", file=source, line=line, key=_dotted(key))


def _dotted(key: Key) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
