"""An audit's options, what a method needs, its scores and facts as the nouns that the ledger records.

Imports no Prefect.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
