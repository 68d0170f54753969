"""Durable peers, run with their own interpreter from a virtual environment of their own: scripts, never imported.

Each takes a database URL and `worker` or `produce COUNT`. A worker prints `ready`; a producer prints the seconds from
just before its first submit to the end of the last task, as the peer's own tables say. Nothing of ours is imported.
"""
