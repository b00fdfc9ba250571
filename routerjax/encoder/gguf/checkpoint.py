"""GgufCheckpoint: a GGUF's tensors as the model has them; what the converter did is undone.

The keys are GGUF's names, but where a parameter of ours is neither a weight nor a bias of a module
(`_key`); key_tables.py says which module is whose.
"""

import math
import re

import numpy as np

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.key_tables import ExpertTensor, Table
from routerjax.encoder.gguf.config import ARCHITECTURES
from routerjax.encoder.gguf.file import GgufFile
from routerjax.encoder.weights import mxfp4
from routerjax.encoder.weights.checkpoint import Tensors

# Their rotary pairs lie side by side in the file, and half a head apart in the model.
_PERMUTED = ("llama", "mistral3", "granite", "smollm3")
# Their norms are stored with the 1 that the model adds.
_SHIFTED = ("gemma2", "gemma3", "qwen3next")
# The head, further heads, rotary tables (which config.py reads) and layers that predict a token
# more: parts that a prefill has no use for.
_UNUSED = re.compile(
    r"^(output\.|cls\.|dense_|rope_freqs\.|rope_factors_)|\.(attn_rot_embd|nextn)\b"
)
_PACKED = ("_blocks", "_scales")
_TURNED = ".attn_k_b.weight"  # [heads, in, out], as llama.cpp multiplies queries by it.


class GgufCheckpoint(Tensors):
    """The tensors of a GGUF file.

    Args:
      file: The file.
      config: Of the encoder in it.
    """

    def __init__(self, file: GgufFile, config: EncoderConfig):
        self._file, self.folder = file, file.path
        self._architecture = file.metadata["general.architecture"]
        self._heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}
        names = [name for name in file.tensors if not _UNUSED.search(name)]
        self._names = {_key(name): name for name in names}
        # Experts in MXFP4 stay packed on their way to the devices, as those of safetensors do.
        experts = [name for name in names if name.endswith("_exps.weight")]
        tensors = (each for table in self.tables(config.family) for each in table.values())
        may_pack = any(isinstance(each, ExpertTensor) and each.packed for each in tensors)
        if may_pack and all(file.tensors[name].type == "MXFP4" for name in experts):
            for name in experts:
                del self._names[_key(name)]
                self._names |= {f"{_key(name)}{end}": name for end in _PACKED}

    def tables(self, family: str) -> tuple[Table, ...]:
        return ARCHITECTURES[self._architecture].tables

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: self._shape(key) for key in self._names}

    def dtype(self, key: str) -> np.dtype:
        if key.endswith(_PACKED):
            return np.dtype(np.uint8)
        changed = self._is_shifted(key) or key.endswith(".A_log")
        return np.dtype(np.float32) if changed else self._file.dtype(self._names[key])

    def rows(self, key: str, start: int, stop: int, n_axes: int = 1) -> np.ndarray:
        name, row = self._names[key], self._shape(key)[n_axes:]
        if key.endswith(_PACKED):
            return self._packed_rows(key, start, stop, row)
        size = math.prod(row)
        n_heads = self._heads.get(name.split(".")[-2], 0)
        if self._architecture in _PERMUTED and n_heads:
            # Whole heads, of which these rows are some.
            head = self._file.tensors[name].shape[0] // n_heads
            first = start // head * head
            last = -(-stop // head) * head
            numbers = self._file.numbers(name, first * size, last * size)
            pairs = numbers.reshape(-1, head // 2, 2, *row).swapaxes(1, 2)
            rows = pairs.reshape(-1, *row)[start - first : stop - first]
            return np.ascontiguousarray(rows)
        if name.endswith(_TURNED):
            # By head its inputs' rows: whole heads, of which these outputs are some.
            head = self._file.tensors[name].shape[-1]
            first, last = start // head, -(-stop // head)
            numbers = self._file.numbers(name, first * head * size, last * head * size)
            rows = numbers.reshape(-1, size, head).swapaxes(1, 2).reshape(-1, size)
            return np.ascontiguousarray(rows[start - first * head : stop - first * head])
        numbers = self._file.numbers(name, start * size, stop * size)
        if self._is_shifted(key):
            numbers = numbers.astype(np.float32) - 1
        elif key.endswith(".A_log"):
            numbers = np.log(-numbers.astype(np.float32))
        return numbers.reshape(stop - start, *row)

    def _shape(self, key: str) -> tuple[int, ...]:
        shape = self._file.tensors[self._names[key]].shape
        if key.endswith(_PACKED):
            groups = (*shape[:-1], shape[-1] // mxfp4.GROUP)
            return groups if key.endswith("_scales") else (*groups, mxfp4.GROUP // 2)
        if key.endswith(_TURNED):
            return shape[0] * shape[2], shape[1]
        if key.endswith(".attn_v_b.weight"):
            return shape[0] * shape[1], shape[2]
        if key.endswith(".ffn_gate_inp_shexp.weight") and len(shape) == 1:
            return (1, *shape)  # The weights of one output.
        if key.endswith((".ssm_conv1d.weight", ".shortconv.conv.weight")):
            return (shape[0], 1, shape[1])
        return shape

    def _is_shifted(self, key: str) -> bool:
        return (
            self._architecture in _SHIFTED
            and key.endswith("norm.weight")
            and not key.endswith(".ssm_norm.weight")
        )

    def _packed_rows(self, key: str, start: int, stop: int, row: tuple[int, ...]) -> np.ndarray:
        """Blocks or scales as mxfp4.py wants them; in a GGUF the scale is a block's first byte."""
        groups = row[0] if row else self._shape(key)[-1]
        held = self._file.blocks(self._names[key], start * groups, stop * groups)
        if key.endswith("_scales"):
            return np.ascontiguousarray(held[:, 0]).reshape(stop - start, *row)
        # The lower halves of its bytes are elements 0 to 15, the upper ones 16 to 31.
        low, high = held[:, 1:] & 15, held[:, 1:] >> 4
        elements = np.concatenate([low, high], axis=1)
        return (elements[:, ::2] | elements[:, 1::2] << 4).reshape(stop - start, *row)


def _key(name: str) -> str:
    """The key of a tensor: what `Source` expects of a leaf or of experts."""
    module, _, leaf = name.rpartition(".")
    if module.endswith("_exps"):
        return module if leaf == "weight" else f"{module}_{leaf}"
    renamed = {".attn_sinks.weight": ".attn.sinks", ".ssm_a": ".ssm.A_log"}
    renamed |= {".ssm_dt.bias": ".ssm.dt_bias"}
    correction = ".ffn_gate_inp.e_score_correction_bias"
    renamed |= {".exp_probs_b.bias": correction, ".exp_probs_b": correction}
    for end, ours in renamed.items():
        if name.endswith(end):
            return name.removesuffix(end) + ours
    return name
