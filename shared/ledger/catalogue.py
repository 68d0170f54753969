"""Which agents exist and what input they take, so that a producer learns of a mistake at once."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import jsonschema
from jsonschema.protocols import Validator

from shared.db.database import Database
from shared.errors import BadInput, DatabaseUnavailable, FleetError, PromptTooLong, UnknownAgent
from shared.ledger.roster import offered
from shared.llm.prices import text_tokens

FRESH_S = 30.0
"""Seconds a read of the catalogue is good for; a name or an input that does not fit is looked up anew at once."""
READ_S = 0.6
"""Seconds that a caller waits for a read: PostgreSQL may hang, and a submit has less than a second in all."""
PROMPT_TOKENS = "x-prompt-tokens"
"""Keyword of an offered schema: the text goes to a language model in one piece, and no more tokens than this do."""


class Catalogue:
    """The agents that workers have offered, remembered for a while. Without a database, all input passes unchecked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._validators: dict[str, Validator] = {}
        self._inputs: dict[str, Mapping[str, Any]] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")

    @property
    def is_overdue(self) -> bool:
        """Whether PostgreSQL has not answered a read in time, and still does not."""
        return self._reading is not None and not self._reading.done() and self._left_s() <= 0

    async def close(self) -> None:
        """Give up a read that is under way, and wait until it has put its connection back."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading}, timeout=READ_S)

    async def check(self, agent: str, kwargs: Mapping[str, Any]) -> None:
        """Refuse what no worker could run.

        Raises: UnknownAgent; BadInput naming the field; PromptTooLong.
        """
        problem = self._problem(agent, kwargs)
        if problem is None and time.monotonic() - self._read_at <= FRESH_S:
            return
        if not await self._read_once():
            return
        problem = self._problem(agent, kwargs)
        if problem is not None:
            raise problem

    async def _read_once(self) -> bool:
        """Read anew; callers that come meanwhile share one read, its failure too. Returns: whether it is read."""
        if self._reading is None or self._reading.done():
            self._asked_at = time.monotonic()
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(lambda read: read.cancelled() or read.exception())  # heard, awaited or not
        reading = self._reading
        await asyncio.wait(
            {reading}, timeout=max(0.0, self._left_s())
        )  # a hung driver does not even end when cancelled
        if not reading.done() or reading.cancelled():
            return False
        if isinstance(reading.exception(), DatabaseUnavailable):
            return False
        reading.result()
        return True

    def _left_s(self) -> float:
        return self._asked_at + READ_S - time.monotonic()

    async def _read(self) -> None:
        schemas = await offered(self._database)
        self._validators = {name: jsonschema.Draft202012Validator(schema) for name, schema in schemas.items()}
        self._inputs = {name: schema.get("properties", {}) for name, schema in schemas.items()}
        self._read_at = time.monotonic()

    def _problem(self, agent: str, kwargs: Mapping[str, Any]) -> FleetError | None:
        if not self._validators:  # no worker has ever started here: nothing is known, so nothing is refused
            return None
        validator = self._validators.get(agent)
        if validator is None:
            known = ", ".join(sorted(self._validators))
            return UnknownAgent(f"no worker offers an agent {agent!r}; there are: {known}", agent=agent)
        error = jsonschema.exceptions.best_match(validator.iter_errors(dict(kwargs)))
        if error is None:
            return _too_long(agent, self._inputs[agent], kwargs)
        field = ".".join(str(part) for part in error.absolute_path)
        where = f"field {field!r} of agent {agent!r}" if field else f"the input of agent {agent!r}"
        return BadInput(f"{where}: {error.message}", agent=agent, **({"field": field} if field else {}))


def _too_long(agent: str, inputs: Mapping[str, Any], given: Mapping[str, Any]) -> PromptTooLong | None:
    for field, value in given.items():
        limit = inputs.get(field, {}).get(PROMPT_TOKENS)
        if limit is not None and isinstance(value, str) and (tokens := text_tokens(value)) >= limit:
            return PromptTooLong(
                f"field {field!r} of agent {agent!r} has about {tokens} tokens, and the widest of its models takes "
                f"{limit}: shorten it, or hand it over in parts",
                agent=agent, field=field, tokens=tokens, context_tokens=limit,
            )  # fmt: skip
    return None
