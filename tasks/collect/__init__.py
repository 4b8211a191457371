"""Outputs on their way in: as examples with a loss, by the state of their source, and back to their traces.

Imports no Prefect.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
