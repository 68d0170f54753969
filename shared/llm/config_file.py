"""From the text of the LLM plane's file to a checked configuration; every refusal names file, line and key."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from shared.errors import Misconfigured
from shared.llm.config import Budget, LLMConfig, Secret
from shared.llm.document import Document, nearest, parse
from shared.llm.document import Path as KeyPath
from shared.llm.knobs import LLMKnobs
from shared.llm.rules import rules_of

NO_KEY = SecretStr("none")
"""Sent to servers that want no key: the SDKs insist on one."""


@dataclass(frozen=True, slots=True)
class Configured:
    """A checked configuration with its secrets, which no `repr` shows."""

    config: LLMConfig
    keys: Mapping[str, SecretStr]
    """One per endpoint."""
    cache_secret: SecretStr | None
    warnings: tuple[str, ...]
    """What works, and should be known: sentences for the log."""


def read_config(path: Path, *, environment: Mapping[str, str]) -> Configured:
    """Read the file and the secrets that it names.

    Raises: Misconfigured, naming file, line and key.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise Misconfigured(f"FLEET_LLM_CONFIG: {path} cannot be read: {why}", variable="FLEET_LLM_CONFIG") from None
    return read_text(text, source=str(path), environment=environment)


def read_text(text: str, *, source: str, environment: Mapping[str, str]) -> Configured:
    """Read a file's text. Raises: Misconfigured, naming source, line and key."""
    document = parse(text, source=source)
    try:
        config = LLMConfig.model_validate(document.data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        unknown = (one for one in problems if one["type"] == "extra_forbidden")  # a typo explains what is missing
        raise _complaint(document, next(unknown, problems[0])) from None
    for path, problem in _contradictions(config):
        raise document.complaint(path, problem)
    keys = {
        name: _secret(document, ("endpoints", name, "api_key"), endpoint.api_key, environment=environment) or NO_KEY
        for name, endpoint in config.endpoints.items()
    }
    cache_secret = _secret(document, ("cache", "secret"), config.cache.secret, environment=environment)
    return Configured(config, keys, cache_secret, tuple(shared_fates(config)))


def one_endpoint(knobs: LLMKnobs) -> Configured:
    """The configuration of a fleet that names one endpoint in FLEET_LLM_BASE_URL, and no file."""
    host = urlsplit(knobs.base_url).netloc.rpartition("@")[2]  # without credentials
    endpoint, model = _name(host), _name(knobs.model)
    config = LLMConfig.model_validate(
        {
            "version": 1,
            "endpoints": {
                endpoint: {
                    "base_url": knobs.base_url,
                    "dialect": knobs.dialect,
                    "proxy_url": knobs.proxy_url,
                    "max_connections": knobs.max_connections,
                    "keepalive_s": knobs.keepalive_s,
                    "max_tokens_field": knobs.max_tokens_field,
                    "stream_answers": knobs.stream_answers,
                    "stream_usage": knobs.stream_usage,
                    "key_header": knobs.key_header,
                    "extra_body": json.loads(knobs.extra_body),
                    "timeouts": {
                        "connect_s": knobs.connect_timeout_s,
                        "first_token_s": knobs.first_token_timeout_s,
                        "idle_s": knobs.idle_timeout_s,
                        "total_s": knobs.total_timeout_s,
                        "min_tokens_per_s": knobs.min_tokens_per_s,
                        "throughput_window_s": knobs.throughput_window_s,
                    },
                }
            },
            "models": {model: {"endpoint": endpoint, "name": knobs.model, "max_tokens": knobs.max_tokens}},
            "chains": {"default": [model]},
            "unlisted_models": True,
            "agents": {"chat": {"cache": "degraded"}},
        }
    )
    return Configured(config, {endpoint: knobs.api_key}, None, ())


def _name(text: str) -> str:
    """A host or a provider's name for a model as the file could spell it."""
    return re.sub(r"^[^A-Za-z0-9]+", "", re.sub(r"[^A-Za-z0-9._/-]", "-", text))[:64] or "unnamed"


def shared_fates(config: LLMConfig) -> Iterator[str]:
    """A sentence for every two models of a chain that one failure takes away together."""
    for chain, models in config.chains.items():
        for first, second in combinations(models, 2):
            one, other = (config.endpoints[config.models[model].endpoint] for model in (first, second))
            if one.fate == other.fate:
                yield f"chain {chain}: {first} and {second} fail together (failure domain {one.fate})"
            elif one.api_key is not None and one.api_key == other.api_key:
                yield f"chain {chain}: {first} and {second} fail together (one key, in {one.api_key})"


def strangers(config: LLMConfig, *, agents: Collection[str]) -> Iterator[str]:
    """A sentence for every policy of an agent that is not here: misspelt, or of another worker's."""
    for name in sorted(config.agents.keys() - set(agents)):
        yield f"agents.{name}: no agent of that name is loaded here; {nearest(name, list(agents))}"


def _contradictions(config: LLMConfig) -> Iterator[tuple[KeyPath, str]]:
    for name, model in config.models.items():
        if model.endpoint not in config.endpoints:
            hint = nearest(model.endpoint, list(config.endpoints))
            yield ("models", name, "endpoint"), f"no endpoint is named {model.endpoint}; {hint}"
    for chain, names in config.chains.items():
        for position, name in enumerate(names):
            if name not in config.models:
                yield ("chains", chain, position), f"no model is named {name}; {_model_hint(config, name)}"
            elif name in names[:position]:
                yield ("chains", chain, position), f"{name} is in this chain already"
    for name, endpoint in config.endpoints.items():
        try:
            rules_of(endpoint, None)
        except ValueError as error:
            yield ("endpoints", name, "breaker"), str(error)
    if "default" not in config.chains:
        yield ("chains",), "one chain must be named default: agents without a policy use it"
    for agent, policy in config.agents.items():
        if policy.chain not in config.chains:
            hint = nearest(policy.chain, list(config.chains))
            yield ("agents", agent, "chain"), f"no chain is named {policy.chain}; {hint}"
    yield from _twins(config)
    yield from _unpriced(config)


def _twins(config: LLMConfig) -> Iterator[tuple[KeyPath, str]]:
    """Two models that are one to their endpoint would share a breaker, and each undo the other's limits."""
    seen: dict[str, str] = {}
    for name in config.models:
        twin = seen.setdefault(config.key(name), name)
        if twin != name:
            yield ("models", name), f"it is {twin} once more: the same name at the same endpoint"


def _model_hint(config: LLMConfig, name: str) -> str:
    if name in config.endpoints:
        return f"{name} is an endpoint: a chain names models"
    return nearest(name, list(config.models))


def _unpriced(config: LLMConfig) -> Iterator[tuple[KeyPath, str]]:
    """A request may name any model, also one of no chain: under a budget in money each needs a price."""
    budgets: dict[str, Budget | None] = {
        **{f"budgets.{name}": getattr(config.budgets, name) for name in ("run", "agent", "tenant", "day")},
        **{f"tenants.{name}.budget": tenant.budget for name, tenant in config.tenants.items()},
        **{f"agents.{name}.budget": policy.budget for name, policy in config.agents.items()},
        **{f"agents.{name}.run_budget": policy.run_budget for name, policy in config.agents.items()},
    }
    bounding = next((name for name, one in budgets.items() if one is not None and one.money is not None), None)
    if bounding is None:
        return
    for name, model in config.models.items():
        if model.price is None:
            yield ("models", name), f"it needs a price (0 if it is free): {bounding} bounds money spent on it"
    if config.unlisted_models:
        problem = f"a model that is not listed has no price, and {bounding} bounds money spent on it: list it"
        yield ("unlisted_models",), problem


def _secret(
    document: Document, path: KeyPath, secret: Secret | None, *, environment: Mapping[str, str]
) -> SecretStr | None:
    if secret is None:
        return None
    if secret.env is not None:
        value = environment.get(secret.env, "").strip()
        if not value:
            raise document.complaint((*path, "env"), f"{secret} is not set or empty")
        return SecretStr(value)
    try:
        value = Path(str(secret.file)).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise document.complaint((*path, "file"), f"{secret} cannot be read: {why}") from None
    if not value:
        raise document.complaint((*path, "file"), f"{secret} is empty")
    return SecretStr(value)


def _complaint(document: Document, problem: ErrorDetails) -> Misconfigured:
    path: KeyPath = tuple(part for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        return document.complaint(path, f"no such key; {nearest(str(path[-1]), _keys_at(path[:-1]))}")
    if problem["type"] == "missing":
        return document.complaint(path, "this key is missing")
    if path[-1:] == ("api_key",) or path[-1:] == ("secret",):  # the value may be the secret itself: never shown
        return document.complaint(
            path, "say where it is, with `env: NAME` or `file: PATH`; the file itself holds no secret"
        )
    shown = problem["input"]
    got = f" (got {shown!r})" if isinstance(shown, str | int | float) and not isinstance(shown, bool) else ""
    words = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    return document.complaint(path, words[0].lower() + words[1:] + got)


def _keys_at(path: KeyPath) -> list[str]:
    """The keys that the shape knows at a path."""
    schema = LLMConfig.model_json_schema()
    here: dict[str, Any] = schema
    for part in path:
        by_name = here.get("properties", {})
        others = [*here.get("patternProperties", {}).values(), here.get("additionalProperties"), here.get("items")]
        here = _resolved(schema, by_name.get(part) or next((one for one in others if isinstance(one, dict)), {}))
    return list(here.get("properties", {}))


def _resolved(schema: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
    for option in (inner, *inner.get("anyOf", ())):
        if "$ref" in option:
            found: dict[str, Any] = schema["$defs"][option["$ref"].rpartition("/")[2]]
            return found
    return inner
