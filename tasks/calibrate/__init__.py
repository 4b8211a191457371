"""Calibration: its plan, queries, training runs, candidates, weightings and figures.

Imports no Prefect.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
