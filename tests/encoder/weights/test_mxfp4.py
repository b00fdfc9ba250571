"""MXFP4: packed experts give the numbers that the format's definition gives."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from routerjax.encoder.families.registry import read_config
from routerjax.encoder.weights import mxfp4
from tests.encoder import tiny_models as models


def element(bits):
    """E2M1 by its definition: a sign, two bits of exponent (bias 1), one of mantissa."""
    sign, exponent, mantissa = bits >> 3, (bits >> 1) & 3, bits & 1
    size = mantissa * 0.5 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
    return -size if sign else size


ELEMENTS = np.array([element(bits) for bits in range(16)])


def quantise(x):
    """[..., n] to blocks [..., n / 32, 16], scales [..., n / 32] and the numbers they stand for."""
    # safetensors writes memory as it lies: all of it must be contiguous.
    groups = np.ascontiguousarray(x, np.float64).reshape(*x.shape[:-1], -1, 32)
    exponents = np.ceil(np.log2(np.abs(groups).max(-1) / 6))
    nearest = np.abs(groups[..., None] / 2.0 ** exponents[..., None, None] - ELEMENTS)
    bits = nearest.argmin(-1).astype(np.uint8)
    blocks = bits[..., 0::2] + 16 * bits[..., 1::2]
    numbers = ELEMENTS[bits] * 2.0 ** exponents[..., None]
    scales = (exponents + 127).astype(np.uint8)
    return blocks.astype(np.uint8), scales, numbers.reshape(x.shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_byte_and_many_scales(dtype):
    blocks = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(5, 0)
    scales = np.repeat(np.array([[2], [100], [127], [130], [250]], np.uint8), 16, 1)
    numbers = np.asarray(mxfp4.unpack(blocks, scales, dtype), np.float64)
    first = 2 * np.arange(256)
    powers = 2.0 ** (scales[:, :1].astype(float) - 127)
    flat = numbers.reshape(5, -1)
    np.testing.assert_array_equal(flat[:, first], ELEMENTS[np.arange(256) % 16] * powers)
    np.testing.assert_array_equal(flat[:, first + 1], ELEMENTS[np.arange(256) // 16] * powers)


def test_unpacking_equals_that_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 6, 2, 16), np.uint8)
    scales = rng.integers(110, 140, (3, 6, 2), np.uint8)
    theirs = convert_moe_packed_tensors(
        torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32
    )
    ours = mxfp4.unpack(blocks, scales, jnp.float32)
    np.testing.assert_array_equal(ours, theirs.numpy().swapaxes(1, 2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A gpt-oss with packed experts, and the same with its numbers written out; its torch model."""
    torch = pytest.importorskip("torch")
    family, settings = models.VARIANTS["gpt_oss"]
    # Two groups of 32 in a row of gate and up, one in a row of down.
    wide = settings | {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.VARIANTS, "gpt_oss_wide", (family, wide))
        model = models.build("gpt_oss_wide", seed=4)
    plain, packed = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("packed")
    model.save_pretrained(plain)
    tensors = load_file(plain / "model.safetensors")
    written, kept = {}, {}
    for key, x in tensors.items():
        if key.endswith(("gate_up_proj", "down_proj")):
            # [experts, in, out] here, [experts, out, in] packed.
            blocks, scales, numbers = quantise(x.swapaxes(1, 2))
            written |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
            kept[key] = np.ascontiguousarray(numbers.swapaxes(1, 2))
            model.get_parameter(key).data = torch.tensor(kept[key])
    others = {key: x for key, x in tensors.items() if key not in kept}
    save_file(others | written, packed / "model.safetensors")
    save_file(others | kept, plain / "model.safetensors")
    raw = json.loads((plain / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (packed / "config.json").write_text(json.dumps(raw))
    return plain, packed, model


@pytest.mark.slow
@pytest.mark.parametrize(("piece_bytes", "n_ahead"), [(2**23, 1), (300, 1), (300, 4)])
def test_packed_experts_load_as_their_numbers(folders, piece_bytes, n_ahead, monkeypatch):
    whole = models.load(folders[1]).digest
    monkeypatch.setattr("routerjax.encoder.weights.loading.PIECE_BYTES", piece_bytes)
    tuning = dataclasses.replace(models.CPU, pieces_ahead=n_ahead)
    plain, packed = (models.load(folder, tuning=tuning) for folder in folders[:2])
    assert packed.digest == whole
    jax.tree.map(np.testing.assert_array_equal, packed.params, plain.params)
    assert packed.digest != plain.digest  # It is of what lies in the files.
    half = models.load(folders[1], dtype=jnp.bfloat16).params
    gate = half["blocks"][0]["ffn"]["experts"]["gate"]["kernel"][...]
    exact = plain.params["blocks"][0]["ffn"]["experts"]["gate"]["kernel"][...]
    np.testing.assert_array_equal(gate.astype(np.float32), exact)


def test_every_state_of_packed_experts_equals_that_of_torch(folders):
    _, packed, model = folders
    tokens_BT, lengths_B = models.random_batch((22, 1, 13), seed=6)
    states = models.our_states(models.load(packed), tokens_BT, lengths_B)
    expected = models.hf_states(model, tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < 1e-5


def test_the_config_of_packed_experts_is_that_of_plain_ones(folders):
    from transformers import AutoConfig

    full = [AutoConfig.from_pretrained(folder).to_dict() for folder in folders[:2]]
    assert full[1]["quantization_config"]
    assert read_config(full[0]) == read_config(full[1])


def test_packed_faults_are_named(folders, tmp_path):
    lost, cut = "model.layers.1.mlp.experts.down_proj_scales", "layers.0.mlp.experts.gate_up_proj"
    cut = f"model.{cut}_blocks"

    def spoil(key, x):
        return [] if key == lost else [(key, x[:, :-1] if key == cut else x)]

    models.rewrite(folders[1], tmp_path, spoil)
    with pytest.raises(ValueError) as error:
        models.load(tmp_path)
    assert str(error.value).splitlines()[1:] == [
        f"  missing: {lost} (4, 64, 1)",
        f"  misshapen: {cut} is (4, 63, 2, 16), expected (4, 64, 2, 16)",
    ]
