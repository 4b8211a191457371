"""The hash chain: digests of rows and events, appending under them, checking rows against them, Merkle proofs.

Nothing is written to the ledger but through `append`.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
