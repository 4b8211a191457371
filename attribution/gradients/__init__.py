"""Per-example gradients: hooks on the tracked model, fallback by autograd, checks before the first pass, memory.

`capture` is the loop over batches that calls the rest.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
