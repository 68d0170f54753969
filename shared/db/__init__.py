"""PostgreSQL: the tables, the nodes, and the one way to open a unit of work.

What it is: `Database.unit`: one connection to one node and one transaction. Writes, and reads that say nothing else, go
to the primary; `mode="ro"` with `consistency="causal"`, `"bounded"` or `"eventual"` may go to a replica, and is then
never older than it asked for: it waits, goes to the primary, or fails as ReplicaStale. Which node is the primary and
which replicas may be read from is looked up several times a second, never configured. A COMMIT whose answer was lost is
CommitUnknown: do not write again what is not known to be missing.
With one node nothing is looked up, and no unit pays for what it does not use.
With several clusters, a unit with a `shard_key` goes first to the one that has the key's bucket: `shards`. The buckets'
homes are in the clusters themselves, with an epoch; triggers there hold back what is written on the wrong one.
For threads without a loop `sync_unit` offers the same units on blocking connections, placed by the same router.
What it never does: choose a node per statement, write through a connection of a replica, repeat a unit, promote a
node, or know what a task is: that is `ledger`.
Who may enter: every room above; nobody else creates an engine.
"""
