"""Other measures of attribution: LDS and retraining, brittleness, detection of planted data, baselines.

None of them is needed for an audit.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
