"""Layer rules: what the per-example gradient of each layer type is, one class a type, found by a registry.

How to add one: docs/extending/layer-rule.md.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
