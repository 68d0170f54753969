"""The restart policy: wait longer each time, give up in time, hold still for a drill."""

from hypothesis import given
from hypothesis import strategies as st

from workers.ops.knobs import RestartPolicy
from workers.ops.restart import Exits, decide

POLICY = RestartPolicy(first_wait_s=0.1, max_wait_s=1.0, give_up_after=5, window_s=60.0)


def test_first_exit_is_answered_by_a_restart_after_the_first_wait() -> None:
    decision = decide(POLICY, Exits(times=[100.0], now=100.0))
    assert (decision.action, decision.wait_s) == ("restart", 0.1)


def test_wait_doubles_with_every_exit_inside_the_window() -> None:
    waits = [decide(POLICY, Exits(times=[100.0] * count, now=100.0)).wait_s for count in (1, 2, 3, 4)]
    assert waits == [0.1, 0.2, 0.4, 0.8]


def test_wait_never_passes_its_ceiling() -> None:
    patient = RestartPolicy(first_wait_s=0.1, max_wait_s=1.0, give_up_after=50)
    assert decide(patient, Exits(times=[100.0] * 20, now=100.0)).wait_s == 1.0


def test_it_gives_up_after_five_exits_within_the_window() -> None:
    decision = decide(POLICY, Exits(times=[96.0, 97.0, 98.0, 99.0, 100.0], now=100.0))
    assert decision.action == "give_up"
    assert decision.reason == "it exited 5 times within 60 s; giving up"


def test_exits_before_the_window_are_forgotten() -> None:
    decision = decide(POLICY, Exits(times=[1.0, 2.0, 3.0, 4.0, 100.0], now=100.0))
    assert (decision.action, decision.wait_s) == ("restart", 0.1)


def test_suspended_policy_holds_even_a_server_that_died_too_often() -> None:
    assert decide(POLICY, Exits(times=[100.0] * 9, now=100.0, suspended=True)).action == "hold"


@given(times=st.lists(st.floats(0, 1000)), now=st.floats(0, 1000), suspended=st.booleans())
def test_every_decision_has_a_reason_and_a_bounded_wait(times: list[float], now: float, suspended: bool) -> None:
    decision = decide(POLICY, Exits(times=times, now=now, suspended=suspended))
    assert decision.reason
    assert 0 <= decision.wait_s <= POLICY.max_wait_s
