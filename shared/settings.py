"""Every room's knobs, gathered from the environment once: FLEET_<ROOM>_<KNOB>.

The only place that reads the environment. A wrong value, or a FLEET_ variable that no room knows, refuses to start and
names the variable. A room of `workers` hands its own knobs' type in, because this floor cannot import it.
"""

import difflib
import os
from collections.abc import Container, Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import ValidationError, create_model
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.broker.knobs import BrokerKnobs, Profile
from shared.db.knobs import DbKnobs
from shared.db.shards_file import ShardAddress, own_shard, read_shards
from shared.errors import Misconfigured
from shared.ledger.knobs import LedgerKnobs
from shared.llm.config_file import Configured, one_endpoint, read_config
from shared.llm.knobs import LLMKnobs
from shared.memory.knobs import MemoryKnobs
from shared.resilience.knobs import ResilienceKnobs
from shared.retrieval.knobs import RetrievalKnobs
from shared.telemetry.knobs import LogKnobs

PREFIX = "FLEET_"
SHARED_ROOMS: dict[str, type[Any]] = {
    "db": DbKnobs,
    "broker": BrokerKnobs,
    "ledger": LedgerKnobs,
    "llm": LLMKnobs,
    "memory": MemoryKnobs,
    "resilience": ResilienceKnobs,
    "vectors": RetrievalKnobs,
    "log": LogKnobs,
}
PROCESS_ROOMS = ("worker", "keeper", "ops")
"""Rooms of `workers` whose knobs their own mains read with `load_room`."""

Knobs = TypeVar("Knobs")


@dataclass(frozen=True, slots=True)
class General:
    """FLEET_PROFILE, FLEET_AGENTS and NOTIFY_SOCKET: what belongs to no room."""

    profile: Profile = "full"
    """`embedded` admits one machine's Valkey as the broker; `full` insists on RabbitMQ."""
    agents: str = ""
    """Modules with further agents, separated by commas."""

    @property
    def agent_modules(self) -> tuple[str, ...]:
        """The modules named in FLEET_AGENTS."""
        return tuple(name.strip() for name in self.agents.split(",") if name.strip())


@dataclass(frozen=True, slots=True)
class Settings:
    """All that `shared` can be tuned by, checked."""

    general: General
    db: DbKnobs
    broker: BrokerKnobs
    ledger: LedgerKnobs
    llm: LLMKnobs
    memory: MemoryKnobs
    resilience: ResilienceKnobs
    vectors: RetrievalKnobs
    log: LogKnobs
    notify_socket: str | None
    shards: tuple[ShardAddress, ...] = ()
    """Every shard, when there are several; `broker` is then that of this process's own."""


def load() -> Settings:
    """Read and check the environment.

    Raises: Misconfigured with one sentence that names the variable.
    """
    general = load_room("", General)
    rooms = {name: load_room(name, knobs) for name, knobs in SHARED_ROOMS.items()}
    _refuse_unknown(os.environ)
    shards = read_shards(rooms["db"], broker_url=rooms["broker"].url)
    if shards:
        rooms["broker"] = replace(rooms["broker"], url=own_shard(shards, rooms["db"]).broker_url)
    settings = Settings(general=general, notify_socket=os.environ.get("NOTIFY_SOCKET"), shards=shards, **rooms)
    try:
        settings.broker.check_profile(general.profile)
    except ValueError as error:
        raise Misconfigured(f"FLEET_BROKER_{_sentence(error, {'url'})}", variable="FLEET_BROKER_URL") from None
    return settings


def load_llm(knobs: LLMKnobs) -> Configured:
    """The LLM plane of FLEET_LLM_CONFIG, or else the one endpoint of FLEET_LLM_BASE_URL, with the secrets they name.

    Raises: Misconfigured, naming file, line and key.
    """
    return read_config(Path(knobs.config), environment=os.environ) if knobs.config else one_endpoint(knobs)


def load_room(room: str, knobs: type[Knobs]) -> Knobs:
    """Read one room's knobs from FLEET_<ROOM>_<KNOB>.

    Args:
        room: The room's name, lower case; empty for the variables that belong to none.
        knobs: A frozen dataclass whose fields all have defaults.

    Raises: Misconfigured with one sentence that names the variable.
    """
    prefix = f"{PREFIX}{room.upper()}_" if room else PREFIX
    if room in PROCESS_ROOMS:
        _refuse_others(os.environ, prefix, {prefix + one.name.upper() for one in fields(cast(Any, knobs))})
    hints = get_type_hints(knobs, include_extras=True)
    shape: dict[str, Any] = {one.name: (hints[one.name], _default(one)) for one in fields(cast(Any, knobs))}
    reader = create_model(f"{knobs.__name__}Reader", __base__=_Environment, **shape)
    try:
        read = reader(_env_prefix=prefix)
        return knobs(**{name: getattr(read, name) for name in shape})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        variable = prefix + str(problem["loc"][0]).upper()
        shown = "" if "key" in variable.lower() or "url" in variable.lower() else f" (got {problem['input']!r})"
        raise Misconfigured(f"{variable}: {_sentence(problem['msg'])}{shown}", variable=variable) from None
    except ValueError as error:
        raise Misconfigured(f"{prefix}{_sentence(error, shape)}", room=room) from None


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(extra="ignore", protected_namespaces=())


def _default(one: "Field[Any]") -> Any:
    if one.default is not MISSING:
        return one.default
    if one.default_factory is not MISSING:
        return one.default_factory()
    raise TypeError(f"knob {one.name} needs a default")


def _sentence(problem: object, knobs: Container[str] = ()) -> str:
    """A knob's complaint starts with the knob's name: spelled as the variable's end, it completes the variable."""
    text = str(problem)
    first, _, rest = text.partition(" ")
    return f"{first.upper()} {rest}" if first.rstrip(",") in knobs else text[0].lower() + text[1:]


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {PREFIX + one.name.upper() for one in fields(General)}
    for room, knobs in SHARED_ROOMS.items():
        known |= {f"{PREFIX}{room.upper()}_{one.name.upper()}" for one in fields(knobs)}
    elsewhere = tuple(f"{PREFIX}{room.upper()}_" for room in PROCESS_ROOMS)
    _refuse_others({n: v for n, v in environment.items() if not n.startswith(elsewhere)}, PREFIX, known)


def _refuse_others(environment: Mapping[str, str], prefix: str, known: set[str]) -> None:
    for name in sorted(environment):
        if name.startswith(prefix) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; see the settings in the README"
            raise Misconfigured(f"{name}: no such setting{hint}", variable=name)
