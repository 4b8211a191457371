"""Further training, the measured gold standard, and how well predicted effects agree with it (arXiv 2412.03906).

Noise ceilings, left-out subsets and resumable training runs live here.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
