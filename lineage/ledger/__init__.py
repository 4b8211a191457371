"""Writing the ledger: its file and migrations, nouns as rows, the sealed snapshot for readers.

One process holds the file open for writing, for a moment each time.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
