"""The operators' room: the supervisor that starts a whole fleet on one machine, and the command line `fleet`.

It is the one way that demo, tests, benchmarks and drills start servers: private loopback ports, an unprivileged user,
nothing system-wide touched, no process left behind. It never runs agents, never reads the ledger for the product and
never imports another room of `workers`: it starts them as processes. Operators enter through `fleet …`, tests through
`supervisor.Supervisor` and `topology.build`.
"""
