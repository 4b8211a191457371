"""Attribution methods: what each does to a query before the inner product with training rows.

How to add one: docs/extending/method.md.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
