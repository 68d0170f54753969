"""Every agent becomes a Celery task of stock Celery, named `agents.<name>`."""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from celery import Celery
from sqlalchemy.util.concurrency import await_only

from shared.contracts import TASK_PREFIX
from shared.errors import Misconfigured
from workers.agents.agent import AGENTS, Agent
from workers.agents.execution import Hold, execute


def load_agents(modules: Iterable[str]) -> Mapping[str, Agent]:
    """Import modules, so that their `@agent` and `@tool` functions register.

    Raises: Misconfigured naming the module that cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise Misconfigured(f"FLEET_AGENTS: cannot import {module!r}: {error}", variable="FLEET_AGENTS") from error
    return AGENTS


def register(app: Celery, agents: Mapping[str, Agent], hold: Hold) -> None:
    """Add each agent to the app; the body runs in the pool's greenlet and awaits on its loop."""
    for one in agents.values():
        _add(app, one, hold)


def _add(app: Celery, one: Agent, hold: Hold) -> None:
    @app.task(  # type: ignore[untyped-decorator]
        name=TASK_PREFIX + one.name, Request="workers.agents.consumer:FleetRequest",
        bind=True, typing=False, acks_late=False, ignore_result=True,
    )  # fmt: skip
    def body(self: Any, *args: Any, **kwargs: Any) -> Any:
        header = vars(self.request).get("fleet") or {}
        return await_only(execute(hold, one, self.request.id, args, kwargs, header))
