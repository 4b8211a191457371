"""The index of all reports, comparisons of two, and the server that shows them on this machine.

Pages over many audits are built from the ledger alone.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
