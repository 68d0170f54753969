"""What to do about an error that says what is wrong but not, from a command line's view, how to get on."""

import errno

from shared.errors import DatabaseUnavailable, FleetError, Misconfigured, NotAccepted, SessionUnavailable

REMEDIES: dict[type[FleetError], str] = {
    DatabaseUnavailable: "check FLEET_DB_URL, or start a fleet with `fleet up`",
    NotAccepted: "check FLEET_DB_URL and FLEET_BROKER_URL, or start a fleet with `fleet up`",
    SessionUnavailable: "check FLEET_MEMORY_REDIS_URL, or start a fleet with `fleet up`",
}
FULL = (errno.ENOSPC, errno.EDQUOT)


def with_remedy(error: FleetError) -> FleetError:
    """The same error; its sentence ends with what to do."""
    remedy = REMEDIES.get(type(error))
    if remedy is not None and not error.message.endswith(remedy):
        error.message = f"{error.message}; {remedy}"
    return error


def of_system(error: OSError) -> Misconfigured:
    """What the operating system refused, with what to do."""
    where = f"{error.filename}: " if error.filename else ""
    why = error.strerror or str(error) or type(error).__name__
    if isinstance(error, ConnectionError | TimeoutError):
        return Misconfigured(f"A server does not answer, or has hung up ({why}): see `fleet status`.")
    if error.errno in FULL:
        return Misconfigured(f"{where}{why}: free some space, or choose another folder with --dir.")
    return Misconfigured(f"{where}{why}: see that it is there and yours, or choose another folder with --dir.")


def named(error: FleetError | OSError) -> FleetError:
    """As an error of ours."""
    return of_system(error) if isinstance(error, OSError) else error
