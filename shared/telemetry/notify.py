"""Tell a supervisor that this process is ready: systemd's notify protocol, one datagram."""

import socket


def notify(notify_socket: str | None, state: str = "READY=1") -> bool:
    """Send one state word to the supervisor's socket.

    Args:
        notify_socket: The path in NOTIFY_SOCKET (a leading @ means abstract), None when nobody listens.
        state: A word of sd_notify(3), such as READY=1 or STOPPING=1.

    Returns: Whether it was sent; a supervisor that is gone is no reason to fail.
    """
    if not notify_socket:
        return False
    path = "\0" + notify_socket[1:] if notify_socket.startswith("@") else notify_socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(state.encode(), path)
        except OSError:
            return False
    return True
