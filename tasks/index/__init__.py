"""Measuring the training data once: options, estimates, the pass, worker processes, opening what is stored.

Imports no Prefect.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
