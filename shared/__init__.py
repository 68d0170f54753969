"""What processes know: contracts, the ledger, the ports to the world outside.

No main, no event loop of its own, no environment (but for `settings`). `workers` stands on this floor; nothing here
imports `workers`. Inside, imports point downwards only: client > settings > ledger | memory > retrieval | llm >
broker | db > resilience > telemetry > contracts > errors | clock.
"""
