"""The MLflow registry, checkpoints read without executing anything, dataset manifests, audit runs.

Whatever talks to MLflow about models does so from here.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
