"""The order in which servers start, and what is said about a wrong one."""

import pytest

from workers.ops.probes import RedisProbe
from workers.ops.spec import ServerFailed, ServerSpec, start_order


def specs(**needs: tuple[str, ...]) -> dict[str, ServerSpec]:
    return {
        name: ServerSpec(name=name, kind="toy", argv=("true",), probe=RedisProbe(1), needs=wanted)
        for name, wanted in needs.items()
    }


def test_a_server_follows_what_it_needs() -> None:
    order = start_order(specs(worker=("migrate", "broker"), migrate=("database",), broker=(), database=()))
    assert order == ("database", "migrate", "broker", "worker")


def test_a_need_that_already_runs_is_satisfied() -> None:
    assert start_order(specs(worker=("broker",)), known=frozenset({"broker"})) == ("worker",)


def test_an_unknown_need_is_named() -> None:
    with pytest.raises(ServerFailed, match="worker needs broker, which is not part of this run"):
        start_order(specs(worker=("broker",)))


def test_a_circle_is_drawn() -> None:
    with pytest.raises(ServerFailed, match="in a circle: a -> b -> a"):
        start_order(specs(a=("b",), b=("a",)))
