"""The ledger in other tools' words: OpenLineage, PROV, CycloneDX, Parquet.

How to add one: docs/extending/export.md.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
