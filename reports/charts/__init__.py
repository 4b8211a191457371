"""Pictures of a report as SVG: shares, parameter groups, the lineage graph.

Each takes values of the report's model and returns text.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
