"""torch_later: transformers' configs and tokenizers without the import of torch."""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

# A config asks torch for the dtype that it names, and is written with the name again.
_DTYPES = ("bfloat16", "float16", "float32", "float64")


class _Later(types.ModuleType):
    """Stands for torch until something of torch is used."""

    def __init__(self, spec: importlib.machinery.ModuleSpec):
        super().__init__("torch")
        self.__spec__ = spec  # By which transformers sees that torch is installed.
        self._thread = threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get("torch") is self:
            # To another thread, which may mean it, torch is what it is.
            if name in _DTYPES and threading.get_ident() == self._thread:
                return name
            del sys.modules["torch"]
        return getattr(importlib.import_module("torch"), name)


@contextlib.contextmanager
def torch_later() -> Iterator[None]:
    """Within it `import torch` imports torch only once something of it is used.

    Where torch is installed, transformers imports it with its configs, which takes two seconds, and
    uses nothing of it for configs and tokenizers but dtypes, for which their names do. Afterwards
    `import torch` is what it was.
    """
    spec = None if "torch" in sys.modules else importlib.util.find_spec("torch")
    if spec is None:  # It is there already, or not installed.
        yield
        return
    stand_in = sys.modules["torch"] = _Later(spec)
    try:
        yield
    finally:
        if sys.modules.get("torch") is stand_in:
            del sys.modules["torch"]
