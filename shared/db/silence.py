"""Who was asked and does not answer: pure, and fair to those whose answers nobody has come to read yet."""

from collections.abc import Collection


class Silence:
    """Only an attempt that began and was not answered is a sign of silence, never the age of the last answer.

    And only as seen by somebody who is punctual: a process that stood still, for a debugger or a long computation,
    finds old questions beside their answers. So a question's age is taken at the beginning of the last look, at any
    node, that has ended: by then answers were being read again.
    """

    def __init__(self, *, after_s: float) -> None:
        self._after_s = after_s
        self._asked_at: dict[str, float] = {}
        self._punctual_at = float("-inf")

    def asked(self, name: str, *, at: float) -> None:
        """Something was sent to a node. While an earlier question is not answered, that one counts."""
        self._asked_at.setdefault(name, at)

    def answered(self, name: str) -> None:
        """It has answered the last question."""
        self._asked_at.pop(name, None)

    def looked(self, *, began: float) -> None:
        """A look at some node has ended, with an answer or without."""
        self._punctual_at = max(self._punctual_at, began)

    @property
    def overdue(self) -> Collection[str]:
        """Nodes that were asked too long ago, and have not answered."""
        return [name for name, at in self._asked_at.items() if self._punctual_at - at > self._after_s]
