"""The DuckDB ledger: what was recorded, in which order, and the proof that nobody changed it."""
