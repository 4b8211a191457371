"""The mathematics, in torch alone: adapters, capture, projection, preconditioning, weighting and scoring.

The names below are the way from a model to scores; each loads its module on first use. docs/attribution.md walks it.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
