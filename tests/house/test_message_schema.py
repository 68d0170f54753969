"""The committed JSON Schema is the one that the code means."""

from pathlib import Path

from workers.ops.schema import schema_text

COMMITTED = Path(__file__).parents[2] / "deploy" / "task-message.v1.schema.json"


def test_the_committed_schema_of_the_task_message_is_current() -> None:
    assert COMMITTED.read_text("utf-8") == schema_text() + "\n", "run `make schema`"
