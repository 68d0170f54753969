"""The one door to every dialect: only the SDKs that a configuration names are imported."""

import importlib
from typing import Literal

from shared.clock import Clock
from shared.errors import Misconfigured
from shared.llm.knobs import LLMKnobs
from shared.llm.port import Adapter
from shared.llm.wire import OnLimits

DialectName = Literal["openai", "anthropic"]

ADAPTERS: dict[DialectName, str] = {
    "openai": "shared.llm.openai_chat:OpenAIChat",
    "anthropic": "shared.llm.anthropic_chat:AnthropicChat",
}


def open_adapter(
    knobs: LLMKnobs,
    *,
    dialect: DialectName = "openai",
    name: str | None = None,
    clock: Clock | None = None,
    on_limits: OnLimits | None = None,
) -> Adapter:
    """Build the adapter of one endpoint; the caller closes it.

    Args:
        name: What stands in replies and errors; host and port when None.
        on_limits: Told, within the task of the call, what a response says about the limits that are left.

    Raises: Misconfigured when the dialect's SDK is not installed, or the key cannot be sent.
    """
    module, _, kind = ADAPTERS[dialect].partition(":")
    try:
        adapter = getattr(importlib.import_module(module), kind)
    except ModuleNotFoundError as error:
        if error.name != dialect:
            raise
        remedy = f"pip install 'agent-fleet[{dialect}]'"
        raise Misconfigured(f"endpoint {name or knobs.base_url} speaks {dialect}: {remedy}") from error
    built: Adapter = adapter(knobs, clock=clock, name=name, on_limits=on_limits)
    return built
