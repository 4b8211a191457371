"""What happens to recorded things later: withdrawals, revisions, alerts, watermarks of sources.

Each is an event of the chain.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
