"""Which nodes there are and how reads are to be routed, from the settings or from a YAML file."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy.engine import make_url

from shared.db.facts import NodeAddress
from shared.db.knobs import DbKnobs
from shared.errors import Misconfigured


@dataclass(frozen=True, slots=True)
class Rules:
    """`routing_rules` of the file. Writes and transactions always go to the primary: nothing else can be asked for."""

    read: Literal["replicas", "primary"] = "replicas"
    """`primary`: no replica is read from, whatever a unit of work allows."""
    read_after_write: Literal["primary", "replicas"] = "replicas"
    """Where a causal read goes that no replica is known to be fresh enough for: to the primary at once, or to a replica
    after a short wait."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The nodes, the one first that is taken for the primary until somebody has looked."""

    nodes: tuple[NodeAddress, ...]
    rules: Rules = Rules()


def layout_of(knobs: DbKnobs) -> Layout:
    """The nodes of FLEET_DB_URL and FLEET_DB_REPLICAS; a node is named by its host and port.

    Raises: Misconfigured for two URLs of one node, and for a pooler without a way past it.
    """
    urls = dict.fromkeys((knobs.url, *knobs.replica_urls))
    if knobs.pooler != "none" and len(knobs.direct_urls) != len(urls):
        raise Misconfigured(
            f"FLEET_DB_DIRECT_URL: behind a pooler it must name the {len(urls)} nodes of FLEET_DB_URL and"
            f" FLEET_DB_REPLICAS without it, in their order, and names {len(knobs.direct_urls)}",
            variable="FLEET_DB_DIRECT_URL",
        )
    directs = dict(zip(urls, knobs.direct_urls, strict=False))
    nodes: dict[str, NodeAddress] = {}
    for url in urls:
        name = node_name(url)
        if name in nodes:
            raise Misconfigured(
                f"FLEET_DB_REPLICAS: {name} is listed twice, with different parameters: list each node once",
                variable="FLEET_DB_REPLICAS",
            )
        nodes[name] = NodeAddress(name, url, pool_size=knobs.pool_size, direct_url=directs.get(url, ""))
    return Layout(tuple(nodes.values()))


def node_name(url: str) -> str:
    """`host:port`."""
    parsed = make_url(url)
    return f"{parsed.host}:{parsed.port or 5432}"
