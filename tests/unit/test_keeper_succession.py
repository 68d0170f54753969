"""When a standby deposes a leader that holds the lock."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from shared.ledger.terms import Look
from workers.keeper.succession import Watch

LOOK = Look(lock_pid=7, epoch=3, renewed_at=datetime(2026, 1, 1, tzinfo=UTC), holder="k1")


def renewed(seconds: float) -> Look:
    assert LOOK.renewed_at is not None
    return replace(LOOK, renewed_at=LOOK.renewed_at + timedelta(seconds=seconds))


def test_a_leader_that_shows_itself_is_left_in_office() -> None:
    watch = Watch(stale_after_s=6)
    for second in range(60):
        assert watch.see(renewed(second // 2), now_s=second).action == "wait"


def test_a_leader_that_gives_no_sign_of_life_is_deposed_with_the_reason() -> None:
    watch = Watch(stale_after_s=6)
    assert watch.see(LOOK, now_s=100).reason == "k1 leads term 3, silent for 0.0 s"
    assert watch.see(LOOK, now_s=105.9).action == "wait"
    decision = watch.see(LOOK, now_s=106)
    assert decision.action == "depose"
    assert decision.reason == "k1 leads term 3 but gave no sign of life for 6.0 s, more than 6 s"


def test_a_clock_that_jumps_deposes_nobody() -> None:
    watch = Watch(stale_after_s=6)
    assert watch.see(renewed(0), now_s=0).action == "wait"
    assert watch.see(renewed(-86_400), now_s=5).action == "wait"
    assert watch.see(renewed(86_400), now_s=10).action == "wait"


def test_a_successor_that_has_just_taken_the_lock_gets_its_full_time() -> None:
    watch = Watch(stale_after_s=6)
    watch.see(LOOK, now_s=0)
    assert watch.see(replace(LOOK, lock_pid=8), now_s=7).action == "wait"
    assert watch.see(replace(LOOK, lock_pid=8), now_s=13).action == "depose"


def test_a_lock_that_nobody_holds_is_there_to_be_taken() -> None:
    assert Watch(stale_after_s=6).see(replace(LOOK, lock_pid=None), now_s=0).reason == "nobody leads"
