"""The YAML file of shards: the nodes and the broker of each cluster, the first one being where everything is at first.

    shards:
      main:   {primary: {host: 10.0.0.1}, replicas: [{host: 10.0.0.2}], broker: {vhost: main}}
      second: {primary: {host: 10.0.1.1}, broker: {host: 10.0.1.9, vhost: second}}

User, password and all else come from FLEET_DB_URL and FLEET_BROKER_URL, which every shard shares but for what is said
here. A shard has a broker, or a virtual host, of its own: its queues are named as everywhere, and its workers and its
keeper know of no other shard.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field, StringConstraints
from sqlalchemy.engine import make_url

from shared.db.config_file import ClusterShape, Strict, complaint, layout_from, read_layout, text_of, validated
from shared.db.knobs import DbKnobs
from shared.db.topology import Layout
from shared.errors import Misconfigured

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,30}$")]


class _Broker(Strict):
    host: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    vhost: Annotated[str, Field(min_length=1, max_length=255)] | None = None


class _Shard(ClusterShape):
    database: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    broker: _Broker = _Broker()


class _File(Strict):
    shards: Annotated[dict[Name, _Shard], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class ShardAddress:
    """One shard as declared."""

    name: str
    layout: Layout
    broker_url: str


def own_layout(knobs: DbKnobs) -> Layout:
    """The nodes of this process's shard, or of the only one.

    Raises: Misconfigured, naming file, line and key.
    """
    if not knobs.shards:
        return read_layout(knobs)
    return own_shard(read_shards(knobs, broker_url=""), knobs).layout


def own_shard(shards: tuple[ShardAddress, ...], knobs: DbKnobs) -> ShardAddress:
    """The shard that FLEET_DB_SHARD names; the first one when it names none. Raises: Misconfigured."""
    found = next((one for one in shards if knobs.shard in ("", one.name)), None)
    if found is None:
        names = ", ".join(one.name for one in shards)
        raise Misconfigured(f"FLEET_DB_SHARD: {knobs.shard!r} is none of {names}", variable="FLEET_DB_SHARD")
    return found


def read_shards(knobs: DbKnobs, *, broker_url: str) -> tuple[ShardAddress, ...]:
    """The shards of FLEET_DB_SHARDS in their order; none when it is not set.

    Args:
        broker_url: FLEET_BROKER_URL; empty when nobody asks for the brokers.

    Raises: Misconfigured, naming file, line and key.
    """
    if not knobs.shards:
        return ()
    text, source = text_of(knobs.shards, variable="FLEET_DB_SHARDS")
    return parse_shards(text, source=source, knobs=knobs, broker_url=broker_url)


def parse_shards(text: str, *, source: str, knobs: DbKnobs, broker_url: str) -> tuple[ShardAddress, ...]:
    """The shards of a file's text. Raises: Misconfigured, naming source, line and key."""
    read, lines = validated(text, source=source, shape=_File)
    found: list[ShardAddress] = []
    taken: dict[str, str] = {}
    for name, shard in read.shards.items():
        where = ("shards", name)
        url = make_url(knobs.url)
        url = url.set(database=shard.database) if shard.database else url
        own = replace(knobs, url=url.render_as_string(hide_password=False))
        layout = layout_from(shard, source=source, lines=lines, knobs=own, under=where)
        broker = _broker_of(shard.broker, broker_url)
        for what in (*(node.url for node in layout.nodes), *([broker] if broker else [])):
            if what in taken:
                shown = make_url(what).render_as_string(hide_password=True)
                raise complaint(
                    source, lines, where, f"{shown} is {taken[what]}'s already: give each shard servers, or a database "
                    "and a virtual host, of its own"
                )  # fmt: skip
        taken |= dict.fromkeys((*(node.url for node in layout.nodes), broker), name)
        found.append(ShardAddress(name, layout, broker))
    return tuple(found)


def _broker_of(broker: _Broker, template: str) -> str:
    if not template:
        return ""
    said = {"host": broker.host, "port": broker.port, "database": broker.vhost}
    changed = {key: value for key, value in said.items() if value is not None}
    if not changed:
        return template
    return make_url(template).set(**changed).render_as_string(hide_password=False)  # type: ignore[arg-type]
