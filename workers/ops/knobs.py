"""What can be tuned about starting, watching and stopping servers on one machine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How eagerly a server that died is started again."""

    first_wait_s: float = 0.1
    """Seconds before the first restart; doubles with every exit inside the window. Short: most deaths are single."""

    max_wait_s: float = 5.0
    """Ceiling of that wait."""

    give_up_after: int = 5
    """Exits inside the window that end all tries: a server that dies this often needs a person."""

    window_s: float = 60.0
    """Exits older than this are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorKnobs:
    """Patience of the supervisor."""

    probe_interval_s: float = 0.03
    """Seconds between readiness probes: small, it adds to every start."""

    probe_timeout_s: float = 1.0
    """Seconds one probe may take before it counts as not ready."""

    log_lines: int = 12
    """Last lines of a server's log that an error about it shows."""

    free_bytes: int = 256 * 1024 * 1024
    """Disk space asked for before anything starts: two PostgreSQL clusters and a broker need about half of it."""
