"""Files that appear whole or not at all, locks, content-addressed payloads, and background reading and writing.

Nothing here knows a model or a database.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
