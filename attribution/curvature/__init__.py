"""Curvature of the loss in feature space and its damped inverse: by group, over all groups, Kronecker-factored.

Products with the full inverse, by solvers on unprojected gradients, live here, too.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
