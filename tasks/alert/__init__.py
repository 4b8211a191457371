"""Who hears of an audit: webhooks, traces, an OpenLineage catalogue.

Imports no Prefect.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
