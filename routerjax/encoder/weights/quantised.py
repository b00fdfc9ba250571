"""Quantised: a checkpoint whose quantised weights are read as the numbers that they stand for.

Which weights those are is decided by what lies in the files, not by the config's lists of modules.
Scales of activations are left out: a prefill here does not quantise activations.
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from routerjax.encoder.families.fields import text_config
from routerjax.encoder.families.key_tables import Table
from routerjax.encoder.weights.checkpoint import Checkpoint, Tensors
from routerjax.encoder.weights.dequantise import Weight
from routerjax.encoder.weights.schemes import (
    BITS,
    Fault,
    Parts,
    awq,
    gptq,
    packed,
    scaled,
)

# Beside the codes.
_BESIDE = re.compile(r"_(scale|scale_inv|scale_2|global_scale|zero_point|shape|g_idx)$")
_OF_ACTIVATIONS = re.compile(
    r"\.(activation_scale|input_scale|input_scale_ub|input_global_scale|input_zero_point"
    r"|output_scale|output_zero_point|[qkv]_scale|[qkv]_zero_point)$"
)


def open_checkpoint(folder: pathlib.Path) -> Tensors:
    """The tensors of a folder of safetensors, those that are quantised as their numbers.

    gpt_oss in MXFP4 stays as it is in the file: its key tables know the packed experts.

    Raises:
      ValueError: No safetensors, or a damaged file; a quantisation that is not supported; codes
        without scales, or with scales that do not fit, all of them in one list.
    """
    checkpoint = Checkpoint(folder)
    path = folder / "config.json"
    raw = _read(path)
    said = (
        config.get(name)
        for config in (raw, text_config(raw))
        for name in ("quantization_config", "compression_config", "quantization")
    )
    settings = next((each for each in said if each and isinstance(each, dict)), None)
    if settings is None and (folder / "hf_quant_config.json").is_file():
        path = folder / "hf_quant_config.json"
        settings = {"quant_method": "modelopt", **(_read(path).get("quantization") or {})}
    if settings is None:
        return checkpoint
    model_type = text_config(raw).get("model_type")
    if (settings.get("quant_method"), model_type) == ("mxfp4", "gpt_oss"):
        return checkpoint
    _check(settings, path)
    return Quantised(checkpoint, settings)


class Quantised(Tensors):
    """A checkpoint's tensors as if unquantised: same keys and shapes, quantised ones in float32.

    A weights digest is of these numbers: the same as of a plain float32 checkpoint of them.

    Args:
      checkpoint: The tensors as they lie in the files.
      settings: config.json's quantization_config, of a supported scheme.

    Raises:
      ValueError: Codes without scales, or with scales that do not fit.
    """

    def __init__(self, checkpoint: Checkpoint, settings: dict[str, Any]):
        self.folder, self._checkpoint = checkpoint.folder, checkpoint
        self._weights: dict[str, Weight] = {}
        held, hidden, faults = checkpoint.shapes, set(), []
        readers = _SCHEMES[settings["quant_method"]].readers
        for key in held:
            end = next((end for end in readers if key.endswith(end)), None)
            if end is None or _BESIDE.search(key) or _OF_ACTIVATIONS.search(key):
                hidden |= {key} if _OF_ACTIVATIONS.search(key) else set()
                continue
            parts = Parts(checkpoint, held, settings, key.removesuffix(end))
            try:
                weight = readers[end](parts)
            except Fault as fault:
                faults.append(str(fault))
                continue
            if weight is not None:
                plain = f"{parts.name}.weight" if end == ".qweight" else parts.name
                self._weights[plain] = weight
                hidden |= {key, *parts.used} - {plain}
        if faults:
            shown = "\n  ".join(faults[:40] + [f"... {len(faults) - 40} more"] * (len(faults) > 40))
            raise ValueError(
                f"{self.folder}: its quantised weights ({settings['quant_method']}) cannot be "
                f"dequantised; copy the files again, or take the model that they were made from:\n"
                f"  {shown}"
            )
        self._shapes = {key: shape for key, shape in held.items() if key not in hidden}
        self._shapes |= {key: weight.shape for key, weight in self._weights.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def tables(self, family: str) -> tuple[Table, ...]:
        return self._checkpoint.tables(family)

    def dtype(self, key: str) -> np.dtype:
        quantised = key in self._weights
        return np.dtype(np.float32) if quantised else self._checkpoint.dtype(key)

    def rows(self, key: str, start: int, stop: int, n_axes: int = 1) -> np.ndarray:
        tensors = self._weights.get(key, self._checkpoint)
        if isinstance(tensors, Checkpoint):
            return tensors.rows(key, start, stop, n_axes)
        return tensors.rows(start, stop, n_axes)


class _Scheme(NamedTuple):
    """How one method stores weights.

    Attributes:
      readers: {what the key of the codes ends in: what reads such a weight}.
      supported: {field of the config: values}; null, and a field left out, are fine.
    """

    readers: dict[str, Callable[[Parts], Weight | None]]
    supported: dict[str, tuple[Any, ...]] = {}


_FP8 = ("float8_e4m3fn", "float8_e5m2")

_SCHEMES: dict[str, _Scheme] = {
    "fp8": _Scheme({"": functools.partial(scaled, codes=_FP8)}),
    "fbgemm_fp8": _Scheme({"": functools.partial(scaled, codes=_FP8)}),
    "compressed-tensors": _Scheme(
        {"_packed": packed, "": functools.partial(scaled, codes=(*_FP8, "int8"))},
        {
            "format": (
                "float-quantized", "int-quantized", "naive-quantized", "pack-quantized",
                "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized",
                "mixed-precision",
            ),
            "sparsity_config": ("dense",),
            "transform_config": (),
        },
    ),
    "modelopt": _Scheme(
        {"": functools.partial(scaled, codes=(*_FP8, "uint8"))},
        {"quant_algo": (
            "fp8", "fp8_per_channel_per_token", "mxfp8", "nvfp4", "w4a16_nvfp4", "mixed_precision",
        )},
    ),
    "awq": _Scheme({".qweight": awq}, {"bits": (4,), "version": ("gemm",), "format": ("gemm",)}),
    "gptq": _Scheme(
        {".qweight": gptq},
        {"bits": BITS, **dict.fromkeys(("checkpoint_format", "format"), ("gptq", "gptq_v2"))},
    ),
}  # fmt: skip


def _check(settings: dict[str, Any], path: pathlib.Path) -> None:
    """Raises unless the scheme is supported."""
    method = settings.get("quant_method")
    faults = [f"quant_method {method!r}" + ("" if method else ", as MLX writes")]
    if scheme := _SCHEMES.get(str(method)):
        groups = [g for g in (settings.get("config_groups") or {}).values() if isinstance(g, dict)]
        fields = [
            (field, each.get(field)) for field in scheme.supported for each in (settings, *groups)
        ]
        faults = []
        for field, value in fields:
            value = value.get("format", value) if isinstance(value, dict) else value
            value = value.lower() if isinstance(value, str) else value
            if value and value not in scheme.supported[field]:
                faults.append(f"{method}, {field} {value!r:.80}")
    if faults:
        raise ValueError(
            f"{path}: the weights are quantised ({faults[0]}), of which routerjax reads "
            f"{', '.join(_SCHEMES)} and gpt_oss in mxfp4: take one of those, or the model that "
            f"they were made from"
        )


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot read it: {error}") from error
    if not isinstance(result, dict):
        raise ValueError(f"{path}: expected a JSON object, got {result!r:.80}")
    return result
