"""A connection to the broker whose every wait has a limit."""

import socket
from typing import Any

from kombu import Connection

from shared.broker.knobs import BrokerKnobs


def transport_options(knobs: BrokerKnobs) -> dict[str, Any]:
    """Options for kombu, per transport: bounded reads and writes, confirms, patient but finite TCP."""
    if not knobs.is_amqp:
        return {
            "socket_timeout": knobs.socket_timeout_s,
            "socket_connect_timeout": knobs.connect_timeout_s,
            "visibility_timeout": 3600,
        }
    return {
        "confirm_publish": True,
        "read_timeout": knobs.socket_timeout_s,
        "write_timeout": knobs.socket_timeout_s,
        "socket_settings": {  # the library's 1 s TCP_USER_TIMEOUT resets connections on a short loss of packets
            socket.TCP_USER_TIMEOUT: 20_000,
            socket.TCP_KEEPIDLE: 20,
            socket.TCP_KEEPINTVL: 5,
            socket.TCP_KEEPCNT: 4,
        },
    }


def connect(knobs: BrokerKnobs, *, heartbeat: bool = False) -> Connection:
    """Open a connection now.

    Args:
        heartbeat: Ask for AMQP heartbeats; the caller then has to send them.

    Raises: OSError or kombu's OperationalError when the broker does not answer in `connect_timeout_s`.
    """
    connection = Connection(
        knobs.url,
        connect_timeout=knobs.connect_timeout_s,
        heartbeat=knobs.heartbeat_s if heartbeat else 0,
        transport_options=transport_options(knobs),
    )
    connection.connect()
    return connection


def safe_url(url: str) -> str:
    """The URL without its password, fit for a log."""
    return str(Connection(url).as_uri())
