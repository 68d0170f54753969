"""RabbitMQ from Debian's package, with its own port mapper, cookie and folders: the system's broker is untouched.

The wrapper in /usr/sbin insists on the user rabbitmq, so the scripts below /usr/lib are used; RUNNING_UNDER_SYSTEMD
makes them exec the virtual machine, so the supervised pid is the broker itself.
"""

import shutil
from pathlib import Path

from shared.errors import Misconfigured
from workers.ops.probes import AmqpProbe, EpmdProbe
from workers.ops.spec import ServerSpec
from workers.ops.surroundings import Surroundings

SCRIPTS = Path("/usr/lib/rabbitmq/lib")
ERLANG_PATH = "/usr/local/bin:/usr/bin:/bin"
CONFIGURATION = """\
listeners.tcp.1 = 127.0.0.1:{port}
distribution.listener.interface = 127.0.0.1
loopback_users.guest = true
log.console = true
log.console.level = warning
log.file = false
disk_free_limit.absolute = 50MB
"""


def scripts() -> Path:
    """Find the folder of `rabbitmq-server`.

    Raises: Misconfigured, saying what to install.
    """
    found = sorted(SCRIPTS.glob("rabbitmq_server-*/sbin"))
    if not found or shutil.which("erl", path=ERLANG_PATH) is None:
        raise Misconfigured("RabbitMQ is not installed; run `apt-get install rabbitmq-server`.")
    return found[-1]


def url(port: int) -> str:
    """The address that Celery takes."""
    return f"amqp://guest:guest@127.0.0.1:{port}//"


def port_mapper(around: Surroundings) -> ServerSpec:
    """Erlang's epmd: the broker would start one by itself and leave it behind."""
    scripts()
    port = around.ports.port("epmd")
    epmd = shutil.which("epmd", path=ERLANG_PATH)
    if epmd is None:
        raise Misconfigured("Erlang's port mapper epmd is missing; run `apt-get install rabbitmq-server`.")
    return ServerSpec(
        name="epmd",
        kind="Erlang port mapper",
        argv=(epmd, "-port", str(port), "-address", "127.0.0.1"),
        env=around.server_env("epmd"),
        probe=EpmdProbe(port),
        url=f"tcp://127.0.0.1:{port}",
    )


def server(around: Surroundings) -> ServerSpec:
    """One broker node, without plugins."""
    port, folder = around.ports.port("rabbitmq"), around.folder("rabbitmq")
    files = {name: folder / name for name in ("rabbitmq.conf", "enabled_plugins", ".erlang.cookie")}
    if not files[".erlang.cookie"].exists():
        _write(around, files[".erlang.cookie"], "FLEETLOOPBACKONLY", mode=0o400)
    _write(around, files["enabled_plugins"], "[].\n")
    _write(around, files["rabbitmq.conf"], CONFIGURATION.format(port=port))
    env = {
        **around.server_env("rabbitmq"),
        "RABBITMQ_NODENAME": "fleet@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(around.ports.port("rabbitmq-distribution")),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(files["rabbitmq.conf"]),
        "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(files["enabled_plugins"]),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_SCHEDULER_BIND_TYPE": "u",  # unbound: two brokers on one machine must not share one core
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false",
        "RUNNING_UNDER_SYSTEMD": "true",
        "ERL_EPMD_PORT": str(around.ports.port("epmd")),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP_SECONDS": "0",
    }
    return ServerSpec(
        name="rabbitmq",
        kind="RabbitMQ",
        argv=(str(scripts() / "rabbitmq-server"),),
        env=env,
        cwd=folder,
        probe=AmqpProbe(port),
        needs=("epmd",),
        start_timeout_s=90.0,  # 5 s on an idle machine, 20 s on a busy one
        stop_timeout_s=20.0,
        url=url(port).replace("guest:guest@", ""),
    )


def _write(around: Surroundings, path: Path, text: str, *, mode: int = 0o600) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    around.privileges.own(path)
