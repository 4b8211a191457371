"""Group weights learned without labels, from measured effects, or for an aspect (arXiv 2506.05647).

`fitting` is the one interface to all of them.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
