"""routerjax: picks the LLM that should answer a query, before any of them writes a token.

The public surface is `__init__.pyi`. Each name is loaded from there when it is first used, so that
importing routerjax is quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
