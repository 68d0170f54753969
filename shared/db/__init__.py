"""PostgreSQL: the tables and the one way to open a unit of work.

A unit of work is one connection to one node and one transaction. This room knows nothing of tasks' meaning: that is
`ledger`. Every room above may enter; nobody else creates an engine.
"""
