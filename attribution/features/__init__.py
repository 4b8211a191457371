"""What an index measures: the plan of parameter groups and projections, and batches of projected gradients.

Stored group weights and margins, which change rows but measure nothing, live here, too.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
