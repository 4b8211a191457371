"""The ledger's tables, as SQL in numbered files and as Arrow schemas, and the views made from them.

A new column is declared here and nowhere else.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
