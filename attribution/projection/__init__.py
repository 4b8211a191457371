"""Projection matrices: random ones from a counter-based generator, and eigenbases of Kronecker factors.

A budget of stored numbers is shared out among parameter groups here.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
