"""The nodes of one fleet, and the note that says which of them leads, written before anything is promoted."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import Misconfigured
from workers.ops.replication.knobs import FailoverKnobs
from workers.ops.replication.node import Node

USER = "fleet"
DATABASE = "fleet"


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who leads, and how often that has changed."""

    leader: str
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All nodes, in the order in which they were asked for."""

    nodes: tuple[Node, ...]
    note: Path
    """Where the leadership is written."""

    tools: Path
    """Folder of pg_rewind and pg_basebackup."""

    synchronous: bool = False
    """Whether a commit waits until one replica has it on disk."""

    knobs: FailoverKnobs = field(default_factory=FailoverKnobs)
    returns: dict[str, str] = field(default_factory=dict)
    """How each node was taken back last: pg_rewind or pg_basebackup."""

    def leadership(self) -> Leadership:
        """Read the note; without one the first node leads.

        Raises: Misconfigured when it is damaged, or names a node that is not part of this run.
        """
        found = _read(self.note) if self.note.exists() else Leadership(self.nodes[0].name, 1)
        if found.leader not in {node.name for node in self.nodes}:
            raise Misconfigured(
                f"The primary of this folder is {found.leader}, which is not among {len(self.nodes)} nodes; "
                f"start with --replicas {_replicas_for(found.leader)} or more.",
                leader=found.leader,
            )
        return found

    def crown(self, name: str) -> Leadership:
        """Write that this node leads from now on, on disk before it returns."""
        new = Leadership(name, self.leadership().term + 1)
        draft = self.note.with_suffix(".new")
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"leader": new.leader, "term": new.term}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.note)
        return new

    @property
    def leader(self) -> Node:
        """The node that leads, or is about to."""
        return self.node(self.leadership().leader)

    @property
    def followers(self) -> tuple[Node, ...]:
        """All the others."""
        leader = self.leader.name
        return tuple(node for node in self.nodes if node.name != leader)

    def node(self, name: str) -> Node:
        """One node by name. Raises: Misconfigured when there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise Misconfigured(f"There is no PostgreSQL node named {name}; known: {known}.", node=name)

    def settings_of(self, node: Node, *, behind: Node | None) -> Mapping[str, str]:
        """Whom a node follows; nobody: it leads."""
        if behind is None:
            return {"primary_conninfo": "", "primary_slot_name": ""}
        return {"primary_conninfo": self.conninfo(node.name, of=behind), "primary_slot_name": slot(node.name)}

    def conninfo(self, name: str, *, of: Node) -> str:
        """How `name` reaches a node, in libpq's words."""
        return f"host=127.0.0.1 port={of.port} user={USER} application_name={name}"

    def synchronous_names(self) -> str:
        """The nodes whose word counts; by name: under `*` a base backup's own stream would count as well."""
        return f"ANY 1 ({', '.join(_quoted(self.nodes))})" if self.synchronous else ""

    @property
    def first_replica(self) -> str:
        """The address of a node that follows; empty when none does."""
        return url(self.followers[0].port) if self.followers else ""

    def addresses(self) -> dict[str, str]:
        """What processes are told: the primary as far as it is known now, and the others; they see for themselves."""
        return {
            "FLEET_DB_URL": url(self.leader.port),
            "FLEET_DB_REPLICAS": ",".join(url(node.port) for node in self.followers),
        }


def node_names(replicas: int) -> tuple[str, ...]:
    """postgres, replica, replica-2, replica-3 ..."""
    return ("postgres", *("replica" if number == 1 else f"replica-{number}" for number in range(1, replicas + 1)))


def url(port: int, *, database: str = DATABASE) -> str:
    """The address that SQLAlchemy takes."""
    return f"postgresql+psycopg://{USER}@127.0.0.1:{port}/{database}"


def slot(name: str) -> str:
    """The replication slot of a node: lower case letters, digits and underscores only."""
    return name.replace("-", "_")


def _quoted(nodes: tuple[Node, ...]) -> Iterator[str]:
    return (f'"{node.name}"' for node in nodes)


def _replicas_for(name: str) -> str:
    return name.partition("-")[2] or "1"


def _read(note: Path) -> Leadership:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return Leadership(str(found["leader"]), int(found["term"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Misconfigured(
            f"{note}, which says which PostgreSQL leads, cannot be read; see which node is the newest and write it: "
            '{"leader": "postgres", "term": 2}.',
            path=str(note),
        ) from error
