"""Linear algebra without a model: products, solvers, correlations.

Everything here takes tensors or arrays and returns them.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
