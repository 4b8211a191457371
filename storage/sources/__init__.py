"""Where outputs come from: inbox, folders, object stores, SQL, MLflow traces; their records, and how far each was read.

How to add one: docs/extending/source.md.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
