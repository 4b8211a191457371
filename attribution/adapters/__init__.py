"""The interface users write, `ModelAdapter`, and its ready-made forms for classes, numbers and text.

Loading an adapter's module by the allow-list, collating examples and previewing them live here, too.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
