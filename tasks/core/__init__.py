"""What all tasks need: the workspace, recorded things with a remedy where they are missing, pinned models, datasets.

Imports no Prefect.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
