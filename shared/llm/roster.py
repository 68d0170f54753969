"""The configuration that workers run by, left in Redis without secrets: operators need neither the file nor keys."""

from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

from pydantic import ValidationError
from redis.asyncio import Redis

from shared.llm.config import LLMConfig

NAME = "fleet:llm:roster"


def public(config: LLMConfig) -> str:
    """The configuration as JSON, without whatever could hold a secret: credentials in addresses, keys, extra bodies."""
    data: dict[str, Any] = config.model_dump(mode="json", exclude_defaults=True)
    for endpoint in data["endpoints"].values():
        endpoint["base_url"] = _without_credentials(endpoint["base_url"])
        for private in ("proxy_url", "extra_body", "api_key"):
            endpoint.pop(private, None)
    data.get("cache", {}).pop("secret", None)
    return LLMConfig.model_validate(data).model_dump_json(exclude_defaults=True)


async def announce(redis: Redis, config: LLMConfig) -> None:
    """Leave the configuration for operators. Raises: redis errors."""
    await redis.set(NAME, public(config))


async def announced(redis: Redis) -> LLMConfig | None:
    """What the last worker announced; None when none did, or one of another version. Raises: redis errors."""
    found = cast(bytes | None, await redis.get(NAME))
    if found is None:
        return None
    try:
        return LLMConfig.model_validate_json(found)
    except ValidationError:
        return None


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
