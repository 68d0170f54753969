"""The committed JSON Schema of the LLM plane's file is the one that the code means."""

from pathlib import Path

from workers.ops.llm_commands import schema_text

COMMITTED = Path(__file__).parents[2] / "deploy" / "llm.v1.schema.json"


def test_the_committed_schema_of_the_llm_file_is_current() -> None:
    assert COMMITTED.read_text("utf-8") == schema_text() + "\n", "run `fleet llm schema > deploy/llm.v1.schema.json`"
