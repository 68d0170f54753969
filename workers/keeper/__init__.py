"""The keeper: gives the runs of dead workers to living ones, and publishes tasks whose message is missing.

Each decision is a pure function with a sentence (`decisions`); `rounds` carries them out. Two or more keepers may run:
one leads, by an advisory lock of PostgreSQL. It never runs an agent. Only `main` enters.
"""
