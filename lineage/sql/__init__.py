"""Ad hoc SQL on the published snapshot, bounded, and its answers as CSV, JSON or Parquet.

Readers never touch the ledger file itself.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
