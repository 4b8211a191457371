"""Reading the ledger back: nouns by id, whole audits, histories, explanations and closures of the lineage graph.

Nothing here writes.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
