"""What the demo shows people of a question: the answer, and what happened for it."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from shared.ledger.rows import TaskView
from workers.ops.demo import _ask
from workers.ops.demo_screen import DemoScreen

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
REPORT = {"steps_executed": 4, "steps_replayed": 0, "input_tokens": 321, "output_tokens": 45, "level": "L0"}


class FakeClient:
    """A fleet that has answered, and the task that did."""

    id = UUID(int=7)

    def submit(self, agent: str, inputs: dict[str, Any]) -> "FakeClient":
        return self

    def result(self, timeout_s: float) -> dict[str, Any]:
        return {"answer": "Accepted once is finished once.", "sources": ["a.md"], "level": "L0", "reasons": []}

    def status(self) -> TaskView:
        return TaskView(
            self.id, "default", "chat", None, "succeeded", 1, 1, None, None, REPORT, NOON, NOON,
            NOON + timedelta(seconds=1.5),
        )  # fmt: skip


def test_a_question_is_shown_with_its_answer_task_steps_tokens_seconds_and_level(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _ask("What is promised?", client=cast(Any, FakeClient()), screen=DemoScreen(quiet=False))
    shown = capsys.readouterr().out
    for fact in (
        "What is promised?", "Accepted once is finished once.", f"task {FakeClient.id}", "4 steps", "321 + 45 tokens",
        "1.5 s", "level L0", "from a.md",
    ):  # fmt: skip
        assert fact in shown, fact
