"""The durable heart: which tasks exist, who runs them, and which of their steps are paid for.

One task is one row, and its epoch grows with every claim. One step is one row, written before the call (intent) and
after it (result). Every write of a run is fenced twice: by its worker's row, once per transaction, and by its task's
epoch. Writes of many runs share a transaction (`GroupCommit`); every caller waits for the commit. What many runs ask
shares a statement (`GroupRead`).

A run that waits is put down: its row says what wakes it, and its steps bring it back to the same place, on any worker.

Sealing is optional and ends at this room's doors: `client` and workers seal and open; tables, broker and keeper see
envelopes.

It never talks to a broker or a model. Workers, the keeper and `client` enter; nobody else writes these tables.
"""
