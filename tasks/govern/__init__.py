"""Verification, withdrawal and verdicts over everything that is recorded.

Imports no Prefect.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
