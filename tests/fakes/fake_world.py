"""A whole world for one run: model, vectors, conversation and journal, all in memory."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from shared.contracts import FleetHeader
from shared.errors import FleetError
from shared.llm.messages import ToolCall
from shared.memory.session import SessionMemory
from shared.retrieval.ports import Document
from shared.retrieval.retriever import Retriever
from tests.fakes.fake_chat import FakeChat
from tests.fakes.fake_embedding import FakeEmbedding
from tests.fakes.fake_ledger import FakeCommit
from tests.fakes.fake_sessions import FakeCache, FakeTruth
from tests.fakes.fake_vectors import FakeVectors
from workers.agents.agent import AGENTS
from workers.agents.run import Ports, Run


class FakeWorld:
    """The ports of a worker, and the ledger behind each task's journal."""

    def __init__(self, *script: str | ToolCall | FleetError) -> None:
        self.chat = FakeChat(*script)
        self.embedding = FakeEmbedding()
        self.vectors = FakeVectors()
        self.truth = FakeTruth()
        self.cache = FakeCache()
        self.retriever = Retriever(embedding=self.embedding, vectors=self.vectors)
        self.ports = Ports(chat=self.chat, retriever=self.retriever, memory=SessionMemory(self.truth, self.cache))
        self.ledger: dict[UUID, FakeCommit] = {}

    async def knows(self, *texts: str, tenant: str | None = None) -> None:
        """Put passages into the vector store, each with a source of its own."""
        await self.retriever.add([Document(text, text, f"{n}.md", tenant) for n, text in enumerate(texts, 1)])

    def run(self, task_id: UUID | None = None, *, attempt: int = 1, **header: Any) -> Run:
        """A claimed run; the same task id with a later attempt finds what the earlier one completed."""
        task = task_id or uuid4()
        journal = self.ledger.setdefault(task, FakeCommit()).journal(task, epoch=attempt)
        return Run(task_id=task, header=FleetHeader(**header), attempt=attempt, journal=journal, ports=self.ports)

    async def execute(self, run: Run, agent: str, inputs: Mapping[str, Any]) -> Any:
        """Let a registered agent do the run."""
        one = AGENTS[agent]
        return await one(run, one.inputs.check((), inputs))
