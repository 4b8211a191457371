"""Policies: the rules an audit is held to, read from a file, and the findings they produce.

How to add a rule: docs/extending/policy-rule.md.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
