"""Quantised checkpoints load as the numbers that they stand for, however they are cut and packed.

Each scheme has a writer of its own here: from a weight, what lies in the file and the numbers that
it stands for, both computed whole and plainly.
"""

import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from routerjax.encoder.hub import read_config
from routerjax.encoder.weights.loading import load_weights
from routerjax.encoder.weights.quantised import open_checkpoint
from routerjax.runtime.devices import make_mesh
from tests.encoder import tiny_models as models

QWEN3, DEEPSEEK = models.GOLDEN / "qwen3", models.GOLDEN / "deepseek_v3"
FP8 = ml_dtypes.float8_e4m3fn
E8M0 = ml_dtypes.float8_e8m0fnu
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
CT = {"quant_method": "compressed-tensors", "ignore": ["lm_head"], "kv_cache_scheme": None}


def spread(numbers, block, shape):
    """The number of its block for each element."""
    for axis, size in enumerate(block):
        numbers = np.repeat(numbers, size, axis)
    return numbers[: shape[0], : shape[1]]


def largest(x, block):
    """[blocks, blocks] the largest magnitude in each block."""
    rows, columns = (np.arange(0, n, size) for n, size in zip(x.shape, block, strict=True))
    return np.maximum.reduceat(np.maximum.reduceat(np.abs(x), rows, 0), columns, 1)


def fp8(x, block, scale_dtype=np.float32):
    scale = (largest(x, block) / 448).astype(np.float32)
    if scale_dtype is E8M0:
        scale = 2.0 ** np.ceil(np.log2(scale))
    scale = scale.astype(scale_dtype)
    wide = spread(scale.astype(np.float32), block, x.shape)
    codes = (x / wide).astype(FP8)
    return codes, scale, codes.astype(np.float32) * wide


def whole(codes, least, most):
    return np.clip(np.round(codes), least, most).astype(np.int64)


def integers(x, block, bits, asymmetric=False, group_of=None):
    """Unsigned codes, zero points and float16 scales of groups or blocks, and the numbers."""
    middle = 2 ** (bits - 1)
    sorted_x = x if group_of is None else x[:, np.argsort(group_of)]
    most = largest(sorted_x, block)
    shift = np.random.default_rng(x.size).integers(-middle // 2, middle // 2, most.shape)
    shift = shift * asymmetric
    scale = (most / (middle - 1 - np.abs(shift))).astype(np.float16)
    zero = middle + shift
    if group_of is None:
        wide, wide_zero = (spread(a, block, x.shape) for a in (scale, zero))
    else:
        wide, wide_zero = scale[:, group_of], zero[:, group_of]
    wide = wide.astype(np.float32)
    codes = whole(x / wide + wide_zero, 0, 2**bits - 1)
    return codes, zero, scale, (codes - wide_zero).astype(np.float32) * wide


def pack(codes, bits, order=None):
    """[rows, ceil(columns / codes in a word)] int32, the first code in the lowest bits."""
    per_word = 32 // bits
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_word))).astype(np.uint32)
    words = np.zeros((len(codes), codes.shape[1] // per_word), np.uint32)
    for i in range(per_word):
        words |= codes[:, (order or range(per_word))[i] :: per_word] << np.uint32(bits * i)
    return words.view(np.int32)


def fp8_blocks(key, x):
    codes, scale, numbers = fp8(x, (16, 24))
    return {key: codes, f"{key}_scale_inv": scale}, numbers


def fp8_powers(key, x):
    codes, scale, numbers = fp8(x, (8, 32), E8M0)
    return {key: codes, f"{key}_scale_inv": scale}, numbers


def fp8_tensor(key, x):
    codes, scale, numbers = fp8(x, x.shape)
    activations = key.replace(".weight", ".activation_scale")
    return {key: codes, f"{key}_scale_inv": scale[0, 0], activations: scale[0, 0]}, numbers


def mxfp8(key, x):
    codes, scale, numbers = fp8(x, (1, 8), E8M0)
    return {key: codes, f"{key}_scale": scale.view(np.uint8)}, numbers


def fbgemm(key, x):
    codes, scale, numbers = fp8(x, (1, x.shape[1]))
    bound = key.replace(".weight", ".input_scale_ub")
    return {key: codes, f"{key}_scale": scale, bound: np.ones(1, np.float32)}, numbers


def modelopt_tensor(key, x):
    codes, scale, numbers = fp8(x, x.shape)
    module = key.removesuffix(".weight")
    others = {f"{module}.input_scale": np.float32(2).reshape(())}
    if module.endswith("k_proj"):
        others |= {f"{module}.k_scale": np.float32(3).reshape(())}
    return {key: codes, f"{key}_scale": scale[0, 0], **others}, numbers


def modelopt_channel(key, x):
    codes, scale, numbers = fp8(x, (1, x.shape[1]))
    return {key: codes, f"{key}_scale": scale[:, 0]}, numbers


def fp4(x, n, scale_dtype, shared=1.0):
    """Codes packed two to a byte, scales of groups, and FP4's numbers."""
    scale = largest(x, (1, n)) / 6 / shared
    if scale_dtype is E8M0:
        scale = 2.0 ** np.ceil(np.log2(scale))
    scale = scale.astype(scale_dtype)
    wide = spread(scale.astype(np.float32) * shared, (1, n), x.shape)
    codes = np.abs((x / wide)[..., None] - FP4).argmin(-1).astype(np.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4, scale, FP4[codes]


def nvfp4(key, x, modelopt):
    shared = np.abs(x).max() / np.float32(6 * 448)
    packed, scale, numbers = fp4(x, 8, FP8, shared)
    # The product of the two scales is a float32.
    if modelopt:
        wide = scale.astype(np.float32) * shared
        tensors = {key: packed, f"{key}_scale_2": shared}
    else:
        wide = scale.astype(np.float32) / (1 / shared)
        tensors = {f"{key}_packed": packed, f"{key}_global_scale": (1 / shared).reshape(1)}
    return tensors | {f"{key}_scale": scale}, numbers * spread(wide, (1, 8), x.shape)


def mxfp4(key, x):
    packed, scale, numbers = fp4(x, 8, E8M0)
    numbers = numbers * spread(scale.astype(np.float32), (1, 8), x.shape)
    return {f"{key}_packed": packed, f"{key}_scale": scale.view(np.uint8)}, numbers


def int8(key, x, asymmetric):
    codes, zero, scale, numbers = integers(x, (1, x.shape[1]), 8, asymmetric)
    tensors = {key: (codes - 128).astype(np.int8), f"{key}_scale": scale}
    if asymmetric:
        tensors[f"{key}_zero_point"] = (zero - 128).astype(np.int8)
    return tensors, numbers


def ct_packed(key, x, bits, columns, asymmetric=False, ordered=False):
    n = x.shape[1]
    columns = columns or n
    group_of = np.random.default_rng(3).permutation(n) // columns if ordered else None
    codes, zero, scale, numbers = integers(x, (1, columns), bits, asymmetric, group_of)
    tensors = {f"{key}_packed": pack(codes, bits), f"{key}_scale": scale}
    tensors[f"{key}_shape"] = np.array(x.shape, np.int64)
    if asymmetric:
        tensors[f"{key}_zero_point"] = np.ascontiguousarray(pack(zero.T, bits).T)
    if ordered:
        tensors[f"{key}_g_idx"] = group_of.astype(np.int32)
    return tensors, numbers


def awq(key, x, zero_point=True):
    codes, zero, scale, numbers = integers(x, (1, 8), 4, zero_point)
    module, order = key.removesuffix(".weight"), (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {f"{module}.qweight": pack(codes.T, 4, order)}
    tensors[f"{module}.scales"] = np.ascontiguousarray(scale.T)
    if zero_point:
        tensors[f"{module}.qzeros"] = pack(zero.T, 4, order)
    return tensors, numbers


def gptq(key, x, bits=4, less=1, ordered=False):
    group_of = np.random.default_rng(3).permutation(x.shape[1]) // 8 if ordered else None
    codes, zero, scale, numbers = integers(x, (1, 8), bits, True, group_of)
    module = key.removesuffix(".weight")
    tensors = {
        f"{module}.qweight": np.ascontiguousarray(pack(codes, bits).T),
        f"{module}.qzeros": pack((zero.T - less) % 2**bits, bits),
        f"{module}.scales": np.ascontiguousarray(scale.T),
    }
    if ordered:
        tensors[f"{module}.g_idx"] = group_of.astype(np.int32)
    return tensors, numbers


def groups(form, **weights):
    return CT | {"format": form, "config_groups": {"group_0": {"weights": weights}}}


# name: (writer, its settings, quantization_config or hf_quant_config.json's quantization).
SCHEMES = {
    "fp8 blocks": (fp8_blocks, {}, {"quant_method": "fp8", "weight_block_size": [16, 24]}),
    "fp8 powers": (fp8_powers, {}, {"quant_method": "fp8", "weight_block_size": [8, 32]}),
    "fp8 tensor": (fp8_tensor, {}, {"quant_method": "fp8", "weight_block_size": None}),
    "fbgemm": (fbgemm, {}, {"quant_method": "fbgemm_fp8"}),
    "ct fp8": (fbgemm, {}, groups("float-quantized", num_bits=8, strategy="channel")),
    "ct fp8 blocks": (
        lambda key, x: fp8_blocks(key, x), {}, groups("float-quantized", block_structure="16x24"),
    ),
    "ct mxfp8": (mxfp8, {}, groups("mxfp8-quantized", num_bits=8, group_size=8)),
    "ct int8": (int8, {"asymmetric": False}, groups("int-quantized", num_bits=8)),
    "ct int8 zeros": (int8, {"asymmetric": True}, groups("int-quantized", num_bits=8)),
    "ct int4": (ct_packed, {"bits": 4, "columns": 8}, groups("pack-quantized", group_size=8)),
    "ct int4 channel": (ct_packed, {"bits": 4, "columns": 0}, groups("pack-quantized")),
    "ct int4 zeros": (
        ct_packed, {"bits": 4, "columns": 8, "asymmetric": True}, groups("pack-quantized"),
    ),
    "ct int4 ordered": (
        ct_packed, {"bits": 4, "columns": 8, "ordered": True}, groups("pack-quantized"),
    ),
    "ct packed int8": (
        ct_packed, {"bits": 8, "columns": 8, "asymmetric": True}, groups("pack-quantized"),
    ),
    "ct nvfp4": (nvfp4, {"modelopt": False}, groups("nvfp4-pack-quantized", group_size=8)),
    "ct mxfp4": (mxfp4, {}, groups("mxfp4-pack-quantized", group_size=8)),
    "modelopt fp8": (modelopt_tensor, {}, {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}),
    "modelopt fp8 channel": (modelopt_channel, {}, {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}),
    "modelopt nvfp4": (nvfp4, {"modelopt": True}, {"quant_algo": "NVFP4", "group_size": 8}),
    "awq": (awq, {}, {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "GEMM"}),
    "awq middle": (awq, {"zero_point": False}, {"quant_method": "awq", "zero_point": False}),
    "gptq": (gptq, {}, {"quant_method": "gptq", "bits": 4, "group_size": 8}),
    "gptq 2": (gptq, {"less": 0}, {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}),
    "gptq ordered": (gptq, {"ordered": True}, {"quant_method": "gptq", "desc_act": True}),
    "gptq 8 bits": (gptq, {"bits": 8}, {"quant_method": "gptq", "bits": 8}),
}  # fmt: skip


def write(name, folder, change=None, n_files=1, source=QWEN3, **fields):
    """A quantised model, and beside it the plain one of the same numbers.

    Args:
      name: Of the scheme.
      folder: Holds both folders.
      change: None, or changes the dict of tensors before it is written.
      n_files: Over how many the tensors are spread.
      source: The folder of the model.
      fields: Other fields of the quantisation's config.
    """
    writer, arguments, config = SCHEMES[name]
    written, numbers = {}, {}
    for key, x in load_file(source / "model.safetensors").items():
        tensors, numbers[key] = {key: x}, x
        if (
            key.endswith(("_proj.weight", "_proj_with_mqa.weight"))
            and "layers.1.self_attn.o" not in key
        ):
            tensors, numbers[key] = writer(key, x, **arguments)
        written |= {key: np.asarray(tensor) for key, tensor in tensors.items()}
    if change is not None:
        change(written)
    quantised, plain = folder / "quantised", folder / "plain"
    raw = json.loads((source / "config.json").read_text())
    for each in (quantised, plain):
        each.mkdir(parents=True)
        (each / "config.json").write_text(json.dumps(raw))
    save_file(numbers, plain / "model.safetensors")
    keys = sorted(written, key=lambda key: key[::-1])  # Scales apart from their codes.
    files = {f"model-{i}.safetensors": keys[i::n_files] for i in range(n_files)}
    for file, theirs in files.items():
        save_file({key: written[key] for key in theirs}, quantised / file)
    of_key = {key: file for file, theirs in files.items() for key in theirs}
    index = json.dumps({"metadata": {}, "weight_map": of_key})
    (quantised / "model.safetensors.index.json").write_text(index)
    config = config | fields
    if "quant_method" in config:
        text = json.dumps(raw | {"quantization_config": config})
        (quantised / "config.json").write_text(text)
    else:
        text = json.dumps({"producer": {"name": "modelopt"}, "quantization": config})
        (quantised / "hf_quant_config.json").write_text(text)
    return quantised, plain


def refusal(folder):
    with pytest.raises(ValueError) as caught:
        models.load(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_row_of_every_weight_is_the_number_it_stands_for(name, tmp_path):
    quantised, plain = write(name, tmp_path)
    tensors, expected = open_checkpoint(quantised), open_checkpoint(plain)
    assert dict(sorted(tensors.shapes.items())) == dict(sorted(expected.shapes.items()))
    original = load_file(QWEN3 / "model.safetensors")
    for key, (n, *_) in expected.shapes.items():
        assert tensors.dtype(key) == np.float32
        x = expected.rows(key, 0, n)
        np.testing.assert_array_equal(tensors.rows(key, 0, n), x)
        # Codes near what was quantised: the writer here is no nonsense itself.
        assert np.abs(x - original[key]).max() < 0.6 * np.abs(original[key]).max()
        for start, stop in ((0, 1), (3, 4), (5, 8), (1, n), (n - 3, n)):
            np.testing.assert_array_equal(tensors.rows(key, start, stop), x[start:stop])


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert ours.digest == theirs.digest


@pytest.mark.parametrize(
    "name, source",
    [
        ("fp8 blocks", QWEN3),
        # As its own checkpoints are, experts too.
        pytest.param("fp8 blocks", DEEPSEEK, marks=pytest.mark.slow),
        ("ct int4 zeros", QWEN3),
        ("awq", QWEN3),
        ("gptq ordered", QWEN3),
    ],
)
def test_the_model_is_that_of_its_numbers_in_pieces_and_on_two_devices(
    name, source, tmp_path, monkeypatch
):
    """Also the digest: it is of the numbers, so that neither files nor pieces change it."""
    quantised, plain = write(name, tmp_path, n_files=3, source=source)
    expected = models.load(plain)
    assert_equal(models.load(quantised), expected)
    # 400 bytes are two or three rows: fewer than a word's codes or a block's rows.
    monkeypatch.setattr("routerjax.encoder.weights.loading.PIECE_BYTES", 400)
    assert_equal(models.load(quantised), expected)
    mesh = make_mesh("model:2")
    args = expected.config, np.dtype(np.float32), models.HIGHEST, mesh, models.CPU
    _, params, digest = load_weights(open_checkpoint(quantised), *args)
    assert digest == expected.digest
    jax.tree.map(np.testing.assert_array_equal, params, expected.params)


@pytest.mark.parametrize("name", ["fp8 blocks", "ct int4 zeros", "ct nvfp4", "awq", "gptq"])
def test_rows_take_memory_of_their_own_numbers_alone(name, tmp_path):
    writer, arguments, settings = SCHEMES[name]
    x = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    save_file(writer("a.weight", x, **arguments)[0], tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    tensors = open_checkpoint(tmp_path)
    tracemalloc.start()
    rows = tensors.rows("a.weight", 500, 532)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * rows.nbytes < x.size // 2 * 1.5


def test_an_fp8_model_is_the_one_that_transformers_loads(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    from transformers import AutoModel

    quantised, plain = write("fp8 tensor", tmp_path, activation_scheme="static")
    model = AutoModel.from_pretrained(quantised, dtype=torch.float32)
    for key, x in load_file(plain / "model.safetensors").items():
        np.testing.assert_array_equal(model.state_dict()[key].numpy(), x)


def test_experts_that_share_a_tensor_have_blocks_of_their_own(tmp_path):
    """As of mixtral and others saved by transformers 5: [experts, out, in]."""
    x = np.random.default_rng(0).standard_normal((3, 10, 12)).astype(np.float32)
    codes, scales, numbers = zip(*(fp8(expert, (4, 8)) for expert in x), strict=True)
    key = "layers.0.mlp.experts.gate_up_proj"
    written = {key: np.stack(codes), f"{key}_scale_inv": np.stack(scales)}
    save_file(written, tmp_path / "model.safetensors")
    settings = {"quant_method": "fp8", "weight_block_size": [4, 8]}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    tensors = open_checkpoint(tmp_path)
    assert tensors.shapes == {key: x.shape}
    expected = np.concatenate(numbers)
    for start, stop in ((0, 30), (3, 4), (8, 23)):
        np.testing.assert_array_equal(tensors.rows(key, start, stop, 2), expected[start:stop])
    np.testing.assert_array_equal(tensors.rows(key, 1, 3), np.stack(numbers)[1:])


@pytest.mark.parametrize("outer", [{}, {"text_config": {"model_type": "qwen3"}}])
@pytest.mark.parametrize("name", ["quantization_config", "compression_config"])
def test_the_scheme_is_found_wherever_a_config_names_it(tmp_path, outer, name):
    quantised, plain = write("ct int8", tmp_path)
    raw = json.loads((quantised / "config.json").read_text())
    settings = raw.pop("quantization_config")
    inner = outer.get("text_config", raw)
    inner[name] = settings
    (quantised / "config.json").write_text(json.dumps(raw | outer))
    expected = load_file(plain / "model.safetensors")
    assert open_checkpoint(quantised).shapes == {key: x.shape for key, x in expected.items()}


@pytest.mark.parametrize("name", SCHEMES)
def test_the_config_of_a_quantised_model_is_that_of_the_plain_one(tmp_path, name):
    quantised, plain = write(name, tmp_path)
    assert read_config(quantised) == read_config(plain)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method 'bitsandbytes'"),
        ({"load_in_8bit": True}, "quant_method None"),
        ({"quant_method": "mxfp4"}, "quant_method 'mxfp4'"),
        ({"quant_method": "awq", "version": "gemv"}, "awq, version 'gemv'"),
        ({"quant_method": "awq", "bits": 3}, "awq, bits 3"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({"quant_method": "gptq", "bits": 3}, "gptq, bits 3"),
        (groups("marlin-24"), "format 'marlin-24'"),
        (CT | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "'sparse-24-bitmask'"),
        (CT | {"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
        (
            CT | {"format": "mixed-precision", "config_groups": {"a": {"format": "dense-ish"}}},
            "format 'dense-ish'",
        ),
    ],
)
def test_a_scheme_that_is_not_supported_is_named_with_what_is(tmp_path, settings, named):
    models.rewrite(QWEN3, tmp_path, lambda key, x: [(key, x)])
    raw = json.loads((QWEN3 / "config.json").read_text()) | {"quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    text = refusal(tmp_path)
    for part in (str(tmp_path / "config.json"), "quantised", named, "fp8, fbgemm_fp8", "they were"):
        assert part in text


def test_algorithms_of_modelopt_that_change_activations_are_refused(tmp_path):
    quantised, _ = write("modelopt fp8", tmp_path, quant_algo="W4A16_AWQ")
    assert "hf_quant_config.json: the weights are quantised (modelopt, quant_algo" in refusal(
        quantised
    )
    (quantised / "hf_quant_config.json").write_text("[")
    assert "hf_quant_config.json: cannot read it" in refusal(quantised)
    (quantised / "hf_quant_config.json").write_text("[]")
    assert "hf_quant_config.json: expected a JSON object" in refusal(quantised)


Q = "layers.0.self_attn.q_proj"


def lost(end):
    return lambda tensors: tensors.pop(Q + end)


def replaced(end, change):
    return lambda tensors: tensors.update({Q + end: change(tensors[Q + end])})


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("fp8 blocks", lost(".weight_scale_inv"),
         f"missing: {Q}.weight_scale or {Q}.weight_scale_inv"),
        ("fp8 blocks", replaced(".weight_scale_inv", lambda x: x[:, :1].repeat(5, 1)),
         f"misshapen: {Q}.weight_scale_inv is (2, 5), expected a number for each block of (32"),
        ("fp8 blocks", replaced(".weight", lambda x: x.astype(np.int8)),
         f"unsupported: {Q}.weight is int8, expected float8_e4m3fn or float8_e5m2"),
        ("modelopt fp8", replaced(".weight", lambda x: x.astype(np.int8)),
         f"unsupported: {Q}.weight is int8"),
        ("modelopt nvfp4", lost(".weight_scale_2"),
         f"missing: {Q}.weight_scale_2 or {Q}.weight_global_scale"),
        ("ct nvfp4", replaced(".weight_global_scale", np.zeros_like),
         f"of no use: {Q}.weight_global_scale is 0"),
        ("ct int8 zeros", replaced(".weight_zero_point", lambda x: x.view(np.uint8)),
         f"unsupported: {Q}.weight_zero_point is uint8, expected int8"),
        ("ct int4", lost(".weight_scale"), f"missing: {Q}.weight_scale"),
        ("ct int4", lost(".weight_shape"), f"missing: {Q}.weight_shape"),
        ("ct int4", replaced(".weight_packed", lambda x: x[:, :3].copy()),
         f"misshapen: {Q}.weight_packed is (32, 3), expected 32 rows of 32 codes"),
        ("ct int4", replaced(".weight_scale", lambda x: x[:4].copy()),
         f"misshapen: {Q}.weight_scale is (4, 4), expected (32, groups)"),
        ("ct int4 zeros", replaced(".weight_zero_point", lambda x: x[:2].copy()),
         f"misshapen: {Q}.weight_zero_point is (2, 4), expected (4, 4)"),
        ("awq", lost(".qzeros"), f"missing: {Q}.qzeros"),
        ("awq", replaced(".scales", lambda x: x[:3].copy()),
         f"misshapen: {Q}.qzeros is (4, 4), expected (3, 4)"),
        ("awq middle", replaced(".scales", lambda x: x[:3].copy()),
         f"misshapen: {Q}.scales is (3, 32), expected a number for each block of (32, 32)"),
        ("gptq", lost(".scales"), f"missing: {Q}.scales"),
        ("gptq", replaced(".qzeros", lambda x: x[:, :3].copy()),
         f"misshapen: {Q}.qzeros is (4, 3), expected 4 rows of 32 codes"),
        ("gptq", replaced(".qweight", lambda x: x[:, :3].copy()),
         f"misshapen: {Q}.qweight is (4, 3), expected (4, 32)"),
        ("gptq ordered", replaced(".g_idx", lambda x: x + 1),
         f"{Q}.g_idx has groups 1 to 4, but there are 4"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(tmp_path, name, change, named):
    text = refusal(write(name, tmp_path, change)[0])
    assert named in text
    assert str(tmp_path) in text
    assert "copy the file" in text


def test_scales_of_activations_are_left_out_and_other_tensors_are_not(tmp_path):
    def smooth(tensors):
        tensors[f"{Q}.pre_quant_scale"] = np.ones(32, np.float32)

    quantised, _ = write("modelopt fp8", tmp_path, smooth)
    assert refusal(quantised).splitlines()[1:] == [f"  unexpected: {Q}.pre_quant_scale (32,)"]


def test_a_file_that_ends_early_after_it_was_opened_is_named(tmp_path):
    quantised, _ = write("gptq", tmp_path)
    tensors = open_checkpoint(quantised)
    path = quantised / "model-0.safetensors"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"model-0.safetensors: cannot read the tensor .*qweight"):
        for key in tensors.shapes:
            if "_proj" in key and "o_proj" not in key:
                tensors.rows(key, 0, 8)
