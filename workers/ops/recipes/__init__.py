"""One recipe a server: which binary, which flags, which readiness probe. Recipes describe; they never start anything.

Only `workers.ops.topology` enters.
"""
