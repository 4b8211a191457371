"""Write the digest of the ledger's definitions: `python scripts/definitions.py`, after a change of the schema.

Without it readers of the ledger find out by creating the schema, which takes half a second.
"""

from __future__ import annotations

import json
from pathlib import Path

from gradtrail.lineage.ledger.definitions import kept_digest

FILE = Path(__file__).resolve().parents[1] / "lineage" / "schema" / "definitions.json"

if __name__ == "__main__":
    FILE.write_text(json.dumps(kept_digest(), indent=2) + "\n", encoding="utf-8")
