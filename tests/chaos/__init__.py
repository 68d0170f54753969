"""Chaos: everything dies, freezes and comes back while tasks run, and afterwards the books are compared.

The storm runs against a whole fleet of processes; the model is what the ledger's statements are checked against, one by
one. `make test` runs both bounded, `make chaos` at length. Every run prints its seed. Nobody imports this room but
tests.
"""
