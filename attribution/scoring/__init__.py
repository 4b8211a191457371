"""Exact scores of every training row as a stream: top examples, shares by attribute, permutation intervals.

Scores split by parameter group, and of each example on itself, come from the same rows.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
