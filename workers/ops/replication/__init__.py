"""The PostgreSQL nodes of this machine: which of them leads, and how one is fenced, promoted, followed and taken back.

It never talks to the fleet's tables and never decides by itself that a primary is dead: an operator asks. The topology
describes its nodes with it; the supervisor's owners (daemon, tests) call `failover`; nobody else enters.
"""
