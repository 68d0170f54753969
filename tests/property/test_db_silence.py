"""A monitor that stands still now and then takes nobody for silent who answers, and finds out who does not."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shared.db.silence import Silence

AFTER_S = 2.0
ANSWERS_S = 1.9
"""The slowest that still answers in time."""
LOOK_EVERY_S = 0.2
turns = st.lists(st.one_of(st.floats(0.001, 0.25), st.floats(0.25, 60.0)), min_size=1, max_size=80)


class Monitor:
    """Looks at nodes in the turns of one loop; each turn first reads the answers that have come, then asks anew."""

    def __init__(self, **answers_after_s: float | None) -> None:
        self.silence = Silence(after_s=AFTER_S)
        self.answers_after_s = answers_after_s
        self.asked_at: dict[str, float] = {}
        self.due_at = dict.fromkeys(answers_after_s, 0.0)

    def turn(self, now: float) -> set[str]:
        """Returns: All who were taken for silent at any moment of it."""
        overdue: set[str] = set()
        for name, asked_at in list(self.asked_at.items()):
            answers_after_s = self.answers_after_s[name]
            if answers_after_s is not None and asked_at + answers_after_s <= now:
                del self.asked_at[name]
                self.silence.answered(name)
                self.silence.looked(began=asked_at)
                self.due_at[name] = now + LOOK_EVERY_S
                overdue.update(self.silence.overdue)
        for name, due_at in self.due_at.items():
            if name not in self.asked_at and due_at <= now:
                self.asked_at[name] = now
                self.silence.asked(name, at=now)
        return overdue


@given(turns, st.floats(0, ANSWERS_S), st.floats(0, ANSWERS_S))
def test_however_long_the_monitor_stands_still_nobody_who_answers_in_time_is_taken_for_silent(
    pauses: list[float], one: float, other: float
) -> None:
    monitor, now = Monitor(a=one, b=other), 0.0
    for pause_s in pauses:
        assert not monitor.turn(now)
        now += pause_s


@given(st.floats(0.001, 0.1), st.floats(0, 0.2))
def test_a_node_that_freezes_is_found_out_by_looks_at_the_others(pause_s: float, answers_after_s: float) -> None:
    monitor = Monitor(frozen=None, well=answers_after_s)
    times = [number * pause_s for number in range(int(4 / pause_s))]
    found = [now for now in times if "frozen" in monitor.turn(now)]
    assert AFTER_S < found[0] <= AFTER_S + 2 * (LOOK_EVERY_S + answers_after_s + 2 * pause_s)
    assert all(later - earlier < 1.0 for earlier, later in pairwise(found)), "and it stays so"


def test_while_one_question_is_not_answered_later_ones_do_not_make_it_younger() -> None:
    silence = Silence(after_s=AFTER_S)
    silence.asked("a", at=1.0)
    silence.asked("a", at=3.0)
    silence.looked(began=3.5)
    assert silence.overdue == ["a"]
    silence.answered("a")
    silence.asked("a", at=3.5)
    silence.looked(began=4.0)
    assert not silence.overdue
