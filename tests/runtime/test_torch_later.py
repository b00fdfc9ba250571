"""torch_later: torch is imported once something of it is used, and no earlier."""

import subprocess
import sys

import pytest

from routerjax.runtime.torch_later import torch_later

# A torch whose import tells of itself.
_FAKE = "print('imported')\nvalue = 7\n"
_PROGRAM = """
import sys
from routerjax.runtime.torch_later import torch_later
with torch_later():
    import torch as held
    print("torch" in sys.modules, held.__spec__.name, held.float16)
print("torch" in sys.modules)
print(held.value, held.inner.name)
import torch, torch.inner
print(torch.value, torch is sys.modules["torch"], torch.inner is held.inner)
with torch_later():
    import torch as again
print(again is torch)
"""


@pytest.fixture
def fake_torch(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(_FAKE + "from torch import inner\n")
    (tmp_path / "torch/inner.py").write_text("name = 'inner'\n")
    return tmp_path


def test_torch_is_imported_when_something_of_it_is_used(fake_torch, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(fake_torch), prepend=":")
    run = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True)
    assert run.stdout.splitlines() == [
        "True torch float16", "False", "imported", "7 inner", "7 True True", "True"
    ], run.stderr  # fmt: skip


def test_where_torch_is_left_out_it_stays_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with torch_later(), pytest.raises(ImportError):
        import torch  # noqa: F401
    assert sys.modules["torch"] is None
