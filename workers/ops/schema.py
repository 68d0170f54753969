"""`fleet schema`: the JSON Schema of the task message, for producers in any language."""

import json

from shared.contracts import message_schema


def schema() -> None:
    """Print the JSON Schema of the task message; deploy/task-message.v1.schema.json is a copy."""
    print(schema_text())


def schema_text() -> str:
    """The schema, spelled the same on every machine."""
    return json.dumps(message_schema(), indent=2, sort_keys=True, ensure_ascii=False)
