"""Prometheus metrics of the database's nodes and of where units of work went, in base units, declared once."""

from prometheus_client import Counter, Gauge

UNITS = Counter("fleet_db_units_total", "Units of work, by node and by what they asked for", ["node", "asked"])
REFUSED = Counter("fleet_db_units_refused_total", "Reads that no node could serve as asked", ["asked"])
OVERFLOWS = Counter("fleet_db_overflows_total", "Reads sent to the primary because no replica would do", ["asked"])
WAITS = Counter("fleet_db_causal_waits_total", "Causal reads that waited for a replica, by how it ended", ["result"])
TOKENS_LOST = Counter("fleet_db_tokens_lost_total", "Tokens that say nothing about the present, by why", ["why"])
TOKENS_UNREADABLE = Counter("fleet_db_tokens_unreadable_total", "Headers that hold no token", ["source"])
ADMITTED = Gauge("fleet_db_node_admitted", "1 while reads may go there as to a replica", ["node"])
PRIMARY = Gauge("fleet_db_node_primary", "1 while it is seen as the primary", ["node"])
LAG_SECONDS = Gauge("fleet_db_node_lag_seconds", "How old a read there may be at most", ["node"])
LAG_BYTES = Gauge("fleet_db_node_lag_bytes", "Log not yet replayed there", ["node"])
FAILOVERS = Counter("fleet_db_primary_changes_total", "Times this process saw another node become the primary")
