"""What a gate's breaker promises, wherever its state lives; the clock belongs to the test."""

from dataclasses import replace

import pytest

from shared.resilience.circuit import Operate
from shared.resilience.knobs import BreakerKnobs
from tests.contract.gate_world import GateWorld

DAY_S = 86400.0


class BreakerSuite:
    """Subclass it with a `world` fixture."""

    async def test_five_failures_in_a_row_open_it_for_thirty_seconds(self, world: GateWorld) -> None:
        await world.calls("failure", "failure", "failure", "failure", "ok", *["failure"] * 4)
        assert (await world.ask())[1].denial == ""
        settled = await world.calls("failure")
        assert settled is not None
        assert (settled.old, settled.new, settled.reason) == ("closed", "open", "5 failures in a row")
        _, answer = await world.ask()
        assert (answer.denial, answer.mode, answer.reason) == ("breaker", "open", "5 failures in a row")
        assert answer.retry_after_s == pytest.approx(30.0, abs=0.01)

    async def test_half_of_twenty_failing_opens_it_without_any_row(self, world: GateWorld) -> None:
        for _ in range(9):
            await world.calls("failure", "ok")
        await world.calls("failure")
        assert (await world.ask())[1].denial == ""
        settled = await world.calls("failure")
        assert settled is not None and settled.reason == "11 of the last 20 calls failed"

    async def test_the_window_holds_the_last_hundred_calls(self, world: GateWorld) -> None:
        await world.calls(*(["failure", *["ok"] * 4] * 24), seconds=2.0)
        stats = await world.store.stats(world.key, world.rules)
        assert (stats.total_calls, stats.failure_rate, stats.avg_latency_s) == (100, 0.2, 2.0)

    async def test_eighty_percent_slow_calls_open_it(self, world: GateWorld) -> None:
        await world.calls(*["ok"] * 4, seconds=1.0)
        settled = await world.calls(*["ok"] * 16, seconds=60.0)
        assert settled is not None and settled.reason == "16 of the last 20 calls were slow"

    async def test_three_probes_go_through_after_the_open_time_and_two_successes_close_it(
        self, world: GateWorld
    ) -> None:
        await world.dies()
        await world.advance(30.01)
        probes = [await world.ask() for _ in range(5)]
        assert [answer.is_probe for _, answer in probes] == [True, True, True, False, False]
        assert [answer.denial for _, answer in probes] == ["", "", "", "breaker", "breaker"]
        assert probes[3][1].retry_after_s == pytest.approx(1.0, abs=0.01)
        assert (await world.end(probes[0], "ok")).new == "half-open"
        assert (await world.ask())[1].denial == "breaker", "one success and two probes under way: three are enough"
        settled = await world.end(probes[1], "ok")
        assert (settled.new, settled.reason) == ("closed", "2 probes succeeded")
        stats = await world.store.stats(world.key, world.rules)
        assert (stats.state, stats.total_calls, stats.failure_count, stats.rounds) == ("closed", 0, 0, 0)

    async def test_every_failed_round_doubles_the_open_time_up_to_five_minutes(self, world: GateWorld) -> None:
        await world.dies()
        for wait_s in (60.0, 120.0, 240.0, 300.0, 300.0):
            await world.advance((await world.store.stats(world.key, world.rules)).retry_after_s or 0.0)
            await world.advance(0.01)
            settled = await world.end(await world.ask(), "failure")
            assert (settled.old, settled.new) == ("half-open", "open")
            assert settled.retry_after_s == pytest.approx(wait_s)

    async def test_jitter_stretches_and_shortens_the_open_time(self, world: GateWorld) -> None:
        world.rules = replace(world.rules, breaker=BreakerKnobs(failures_in_a_row=1, jitter=0.1))
        settled = await world.end(await world.ask(), "failure", jitter=-0.5)
        assert settled.retry_after_s == pytest.approx(28.5)

    async def test_probes_whose_processes_died_are_given_up_and_the_key_recovers(self, world: GateWorld) -> None:
        await world.dies()
        await world.advance(30.01)
        for _ in range(3):
            assert (await world.ask())[1].is_probe
        for _ in range(10):
            await world.advance(5.9)
            assert (await world.ask())[1].denial == "breaker", "asking must not prolong the leases"
        await world.advance(1.1)
        await world.end(await world.ask(), "ok")
        assert (await world.end(await world.ask(), "ok")).new == "closed"

    async def test_a_late_report_of_an_older_generation_changes_nothing(self, world: GateWorld) -> None:
        early = [await world.ask() for _ in range(8)]
        await world.dies()
        for one in early[:4]:
            assert (await world.end(one, "ok")).new == "open"
        await world.advance(30.01)
        probes = [await world.ask(), await world.ask()]
        assert (await world.end(early[4], "failure")).new == "half-open"
        for probe in probes:
            await world.end(probe, "ok")
        for one in early[5:]:
            assert (await world.end(one, "failure")).new == "closed"
        assert (await world.store.stats(world.key, world.rules)).total_calls == 0

    async def test_a_neutral_end_teaches_nothing_and_returns_the_lease(self, world: GateWorld) -> None:
        await world.calls(*["failure"] * 4, "neutral", "failure")
        assert (await world.store.stats(world.key, world.rules)).state == "open", "neutral does not break a row"
        await world.advance(30.01)
        for _ in range(12):
            probe = await world.ask()
            assert probe[1].is_probe
            assert (await world.end(probe, "neutral")).new == "half-open"

    async def test_a_slow_probe_is_a_failed_one(self, world: GateWorld) -> None:
        await world.dies()
        await world.advance(30.01)
        settled = await world.end(await world.ask(), "ok", 61.0)
        assert (settled.new, settled.reason) == ("open", "a probe was slow")

    async def test_the_last_endpoint_is_asked_once_a_second_and_heals_by_it(self, world: GateWorld) -> None:
        await world.dies()
        granted = []
        for _ in range(30):
            await world.advance(0.1)
            asked = await world.ask(is_last=True)
            if not asked[1].denial:
                granted.append(asked)
                await world.end(asked, "failure")
        assert 2 <= len(granted) <= 4
        assert (await world.ask())[1].denial == "breaker", "others have another endpoint"
        await world.advance(1.01)
        assert (await world.end(await world.ask(is_last=True), "ok")).new == "half-open"
        assert (await world.end(await world.ask(), "ok")).new == "closed"

    async def test_forced_open_holds_until_it_is_closed_even_for_the_last_endpoint(self, world: GateWorld) -> None:
        flying = await world.ask()
        settled = await world.store.operate(world.key, Operate("forced-open", "maintenance"), world.rules)
        assert (settled.old, settled.new) == ("closed", "forced-open")
        await world.advance(10 * DAY_S)
        _, answer = await world.ask(is_last=True)
        assert (answer.denial, answer.mode, answer.reason) == ("breaker", "forced-open", "maintenance")
        assert answer.retry_after_s is None
        assert (await world.end(flying, "ok")).new == "forced-open"
        await world.store.operate(world.key, Operate("closed", "done"), world.rules)
        assert (await world.ask())[1].denial == ""

    async def test_disabled_for_a_time_is_probed_afterwards(self, world: GateWorld) -> None:
        await world.store.operate(world.key, Operate("disabled", "quota", 600.0), world.rules)
        await world.advance(599.0)
        assert (await world.ask(is_last=True))[1].retry_after_s == pytest.approx(1.0, abs=0.01)
        await world.advance(1.01)
        assert (await world.ask())[1].is_probe

    async def test_keys_with_any_name_are_apart(self, world: GateWorld) -> None:
        names = ["a", "a:b", "{a}", "{", "", "a b\n\x1f", "你", "\ud800", "a%7B", "a{"]
        for name in names:
            world.key = f"{name}"
            await world.store.operate(name, Operate("forced-open", f"\x1f{name!r}"), world.rules)
            assert (await world.ask())[1].reason == f"\x1f{name!r}"
            await world.store.operate(name, Operate("closed", "ok"), world.rules)
        await world.store.operate(names[0], Operate("forced-open", "only this"), world.rules)
        for name in names[1:]:
            world.key = name
            assert (await world.ask())[1].denial == ""
