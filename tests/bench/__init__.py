"""Benchmarks: a number for each promise, measured beside a peer in one run on one machine. `make bench` prints them.

They start the full topology through `workers.ops` on ports of their own and use the fleet only as its users do: a
`FleetClient` submits, stock worker processes run. They never assert a time and never reach into a worker. Nobody
imports this room.
"""
