"""What is said and answered, under seal: text in, text out, for stores that keep text.

It is bound to its tenant and its place, such as a session: moved to another one, it does not open.
"""

import json
from typing import Literal

from shared.ledger.vault import NO_TASK, SEALED, Vault, is_sealed

MARK = f'{{"{SEALED}"'
"""How a sealed text begins, and no other does."""


class SealedText:
    """Seals and opens texts of one kind.

    Without keys nothing is sealed. A text that somebody wrote to look like a sealed one is then kept with a space
    before it: refused, it would cost a finished answer; kept as it is, it would shut the session for good.
    """

    def __init__(self, vault: Vault, *, kind: Literal["message", "answer"]) -> None:
        self._vault = vault
        self._kind = kind

    def seal(self, text: str, *, tenant: str, place: str) -> str:
        """The text as it may be stored."""
        if self._vault.active_key_id is None:
            return f" {text}" if text.startswith(MARK) else text
        sealed = self._vault.seal(text, task_id=NO_TASK, role=self._role(tenant, place))
        return json.dumps(sealed, separators=(",", ":"))

    def open(self, text: str, *, tenant: str, place: str) -> str:
        """The text as it was said; one that is not sealed comes back as it is.

        Raises: SealKeyUnknown; SealBroken.
        """
        if not text.startswith(MARK):
            return text
        try:
            sealed = json.loads(text)
        except (ValueError, RecursionError):  # somebody's words, from before keys were thought of
            return text
        if not is_sealed(sealed):
            return text
        return str(self._vault.open(sealed, task_id=NO_TASK, role=self._role(tenant, place)))

    def _role(self, tenant: str, place: str) -> str:
        return f"{self._kind}:{json.dumps([tenant, place])}"
