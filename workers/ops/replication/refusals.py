"""Why a failover did not happen, or not to its end; every message says in which state things are."""

from shared.errors import FleetError


class FailoverRefused(FleetError):
    """Nothing was changed: the primary leads as before."""

    code = "failover_refused"


class NoReplica(FailoverRefused):
    """There is no replica, or none that could be promoted."""

    code = "no_replica"


class AlreadyPrimary(FailoverRefused):
    """The node asked for leads already."""

    code = "already_primary"


class ReplicaBehind(FailoverRefused):
    """The candidate lacks more than may be lost without `--force`."""

    code = "replica_behind"


class ReplicaUnseen(FailoverRefused):
    """With a synchronous standby, one that does not answer may hold acknowledged writes that no other has."""

    code = "replica_unseen"


class FailoverUnderWay(FailoverRefused):
    """Another failover has not ended yet."""

    code = "failover_under_way"


class FailoverUnfinished(FleetError):
    """The old primary is fenced and the new one has not confirmed; the same command again goes on from there."""

    code = "failover_unfinished"
