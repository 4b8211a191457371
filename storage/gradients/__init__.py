"""The gradient store: one LanceDB table an index, sealed once complete, and a table of queries beside it.

Rows, vector codes and the checks of what goes in and comes out live here.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
