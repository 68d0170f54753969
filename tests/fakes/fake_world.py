"""A whole world for one run: model, vectors, conversation and journal, all in memory."""

from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID, uuid4

from shared.contracts import FleetHeader, TaskMessage
from shared.errors import FleetError
from shared.ledger.journal import OnChange
from shared.ledger.retry import ONCE, Retry
from shared.llm.messages import ChatReply, ToolCall
from shared.memory.session import SessionMemory
from shared.retrieval.ports import Document
from shared.retrieval.retriever import Retriever
from tests.fakes.fake_chat import FakeChat
from tests.fakes.fake_embedding import FakeEmbedding
from tests.fakes.fake_ledger import FakeCommit, FakeHome, FakeRuns
from tests.fakes.fake_sessions import FakeCache, FakeTruth
from tests.fakes.fake_vectors import FakeVectors
from workers.agents.agent import AGENTS
from workers.agents.run import Ports, Run


class FakeWorld:
    """The ports of a worker, and the ledger behind each task's journal."""

    def __init__(self, *script: str | ToolCall | ChatReply | FleetError, is_sharded: bool = False) -> None:
        self.chat = FakeChat(*script)
        self.embedding = FakeEmbedding()
        self.vectors = FakeVectors()
        self.truth = FakeTruth()
        self.cache = FakeCache()
        self.retriever = Retriever(embedding=self.embedding, vectors=self.vectors)
        memory = SessionMemory(self.truth, self.cache, is_sharded=is_sharded)
        self.ports = Ports(
            chat_for=self.chat.for_run, retriever=self.retriever, memory=memory, is_sharded=is_sharded
        )  # fmt: skip
        self.ledger: dict[UUID, FakeCommit] = {}
        self.homes: dict[UUID, FakeHome] = {}

    async def knows(self, *texts: str, tenant: str | None = None) -> None:
        """Put passages into the vector store, each with a source of its own."""
        await self.retriever.add([Document(text, text, f"{n}.md", tenant) for n, text in enumerate(texts, 1)])

    def run(
        self, task_id: UUID | None = None, *, attempt: int = 1, on_change: OnChange = "pause", retry: Retry = ONCE,
        agent: str = "a", must_act: bool | None = None, **header: Any,
    ) -> Run:  # fmt: skip
        """A claimed run; the same task id with a later attempt finds what the earlier one completed."""
        task = task_id or uuid4()
        commit = self.ledger.setdefault(task, FakeCommit())
        home = self.homes.setdefault(task, FakeHome(FakeRuns(commit)))
        message = TaskMessage(agent, {}, (), task, FleetHeader(**header))
        journal = commit.journal(task, epoch=attempt, on_change=on_change)
        return Run(
            message=message, attempt=attempt, journal=journal, ports=self.ports, home=home, retry=retry,
            must_act=must_act,
        )  # fmt: skip

    def runs(self, task_id: UUID) -> FakeRuns:
        """What the ledger knows of a task beside its journal."""
        return cast(FakeRuns, self.homes[task_id].runs)

    async def execute(self, run: Run, agent: str, inputs: Mapping[str, Any]) -> Any:
        """Let a registered agent do the run."""
        one = AGENTS[agent]
        return await one(run, one.inputs.check((), inputs))
