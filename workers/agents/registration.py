"""Every agent becomes a Celery task of stock Celery, named `agents.<name>`."""

import importlib
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from celery import Celery
from sqlalchemy.util.concurrency import await_only

from shared.contracts import CAUSAL_HEADER, TASK_PREFIX
from shared.errors import FleetError, Misconfigured
from workers.agents.agent import AGENTS, Agent
from workers.agents.execution import Hold, execute


def load_agents(modules: Iterable[str]) -> Mapping[str, Agent]:
    """Import modules, so that their `@agent` and `@tool` functions register.

    Raises: Misconfigured naming the module that cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except FleetError:
            raise
        except Exception as error:  # whatever a module of somebody else raises: it is told in one sentence
            raise Misconfigured(
                f"FLEET_AGENTS: cannot import {module!r}: {type(error).__name__}: {error}{_where(error)}",
                variable="FLEET_AGENTS",
            ) from error
    return AGENTS


def _where(error: Exception) -> str:
    """The line of the user's code that broke: a sentence is all that is shown."""
    if isinstance(error, SyntaxError | ImportError):  # say so themselves
        return ""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({last.filename}, line {last.lineno})"


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
        headers = vars(self.request)
        token = headers.get(CAUSAL_HEADER)
        return await_only(execute(hold, one, self.request.id, args, kwargs, headers.get("fleet") or {}, token))
