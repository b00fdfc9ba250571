"""A GGUF gives the model it was written from: config, every parameter, every state."""

import dataclasses
import json

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from routerjax.encoder.families.config import EncoderConfig
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.gguf.checkpoint import GgufCheckpoint
from routerjax.encoder.gguf.config import read_gguf_config
from routerjax.encoder.gguf.file import GgufFile
from routerjax.encoder.weights.checkpoint import Checkpoint
from routerjax.encoder.weights.loading import _Piece as Piece
from routerjax.encoder.weights.loading import (
    _read,
    abstract_model,
    load_weights,
    param_shapes,
)
from routerjax.encoder.weights.sources import resolve
from routerjax.runtime.devices import make_mesh
from tests.encoder import gguf_models
from tests.encoder import tiny_models as models

_FULL, _SLIDING = "full_attention", "sliding_attention"
_NO_WINDOW = {"use_sliding_window": False, "layer_types": None}
_YARN = {
    "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
    "original_max_position_embeddings": 12, "beta_fast": 1.0, "beta_slow": 0.15,
}  # fmt: skip
# Golden model, architecture, and the fields of its config.json to which a GGUF has other values,
# as it cannot say the model's own.
CASES = {
    "bert": ("bert", {}),
    "llama": ("llama", {}),
    "llama_rope": ("llama", {}),
    "llama_linear": ("llama", {}),
    "llama_yarn": ("llama", {}),
    "mixtral": ("llama", {"sliding_window": None}),
    "ministral3": ("mistral3", {}),
    "qwen2": ("qwen2", _NO_WINDOW),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 12}),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 8}),
    "phi3": ("phi3", {}),
    "phi3_long": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": (
        "olmo2",
        {
            "rope_parameters": {
                _FULL: _YARN,
                _SLIDING: {"rope_type": "default", "rope_theta": 100.0},
            }
        },
    ),
    "granite": ("granite", {}),
    "smollm3": ("smollm3", _NO_WINDOW | {"no_rope_layers": [1, 1, 1]}),
    "qwen3_moe": ("qwen3moe", {"norm_topk_prob": True}),
    "glm4_moe": ("glm4moe", {}),
    "glm4_moe_plain": ("glm4moe", {}),
    "lfm2_plain": ("lfm2", {}),
    # No GGUF has a mscale of its own.
    "deepseek_v3": (
        "deepseek2",
        {"rope_parameters": _YARN | {"mscale": 0.4, "mscale_all_dim": 0.4}},
    ),
    "deepseek_v3_plain": ("deepseek2", {"rope_interleave": True}),
    "deepseek_v2": ("deepseek2", {}),
    "gpt_oss": ("gpt-oss", {"swiglu_limit": 7.0}),
    "qwen3_next": ("qwen3next", {"norm_topk_prob": True}),
}
# Of these not the numbers of the config.json but float32's of a tensor are in the file.
_OTHER_ROPES = ("llama_rope", "phi3_long")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Golden model -> its GGUF, each written once."""
    folder, written = tmp_path_factory.mktemp("gguf"), {}

    def file(name: str) -> GgufFile:
        if name not in written:
            path = folder / f"{name}.gguf"
            written[name] = GgufFile(gguf_models.golden_file(path, name, *CASES[name]))
        return written[name]

    return file


def config_of(name: str) -> EncoderConfig:
    raw = json.loads((models.GOLDEN / name / "config.json").read_text())
    return read_config(raw | CASES[name][1])


def parameters(checkpoint, config):
    """{(parameter, block, first output): numbers as the parameter has them} of a checkpoint."""
    _, state = abstract_model(config, jnp.float32, models.HIGHEST, models.CPU)
    tables = checkpoint.tables(config.family)
    sources = resolve(checkpoint.folder, config, tables, param_shapes(state), checkpoint.shapes)
    out = {}
    for source in sources:
        piece = Piece(0, 0, source.rows[0], source.rows[-1] + 1)
        x = _read(checkpoint, source.key, source, piece)
        out[source.name, source.number, source.first] = x.T if source.transposed else x
    return out


def load(file, tuning=models.CPU):
    config = read_gguf_config(file)
    mesh = make_mesh("data:1")
    return models.Loaded(
        config,
        *load_weights(
            GgufCheckpoint(file, config), config, jnp.float32, models.HIGHEST, mesh, tuning
        ),
    )


@pytest.mark.parametrize("name", CASES)
def test_config_and_parameters_are_those_of_the_model(files, name):
    expected = config_of(name)
    config = read_gguf_config(files(name))
    if name in _OTHER_ROPES:
        expected = dataclasses.replace(expected, ropes=config.ropes)
    assert config == expected
    ours = parameters(GgufCheckpoint(files(name), config), config)
    theirs = parameters(Checkpoint(models.GOLDEN / name), config)
    joined = {}  # Outputs of the safetensors that lie in rounds, put one after the other.
    for (parameter, number, _), x in sorted(theirs.items()):
        joined.setdefault((parameter, number), []).append(x)
    mine = {}
    for (parameter, number, _), x in sorted(ours.items()):
        mine.setdefault((parameter, number), []).append(x)
    assert mine.keys() == joined.keys()
    # A norm that is stored + 1 comes back to within a rounding, and so does exp(log).
    tolerance = 2e-7 if CASES[name][0] in ("gemma2", "gemma3", "qwen3next") else 0
    for each, parts in mine.items():
        np.testing.assert_allclose(
            np.concatenate(parts, -1), np.concatenate(joined[each], -1), rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("name", ["llama_rope", "phi3_long"])
def test_every_state_is_that_of_the_model_where_the_rotations_are_said_otherwise(files, name):
    encoder = load(files(name))
    tokens_BT, lengths_B, expected = models.golden_states(name)
    states = models.our_states(encoder, tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < 1e-5
    # Llama 3's stretch is the same at every length, so that a prefix can be kept.
    assert encoder.config.follows_length == (name == "phi3_long")


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_every_state_is_that_of_transformers_own_loading(files, name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    from transformers import AutoConfig, AutoModelForCausalLM

    file = files(name)
    raw = json.loads((models.GOLDEN / name / "config.json").read_text()) | CASES[name][1]
    # Of tiny models it does not read all that differs from its classes' defaults.
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    model = AutoModelForCausalLM.from_pretrained(
        file.path.parent, gguf_file=file.path.name, config=config, dtype=torch.float32
    )
    del model.config.quantization_config
    tokens_BT, lengths_B = models.random_batch((22, 9), seed=5)
    expected = models.hf_states(model.eval(), tokens_BT, lengths_B)
    states = models.our_states(load(file), tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < 1e-4


def gguf_tensors(name):
    """The GGUF tensors of a golden model."""
    raw = json.loads((models.GOLDEN / name / "config.json").read_text()) | CASES[name][1]
    tensors = load_file(models.GOLDEN / name / "model.safetensors")
    return gguf_models.converted(tensors, raw, CASES[name][0])


def apart(tensors):
    """Each expert a tensor of its own, as before April 2024."""
    for key in [key for key in tensors if key.endswith("_exps.weight")]:
        for e, x in enumerate(tensors.pop(key)):
            tensors[key.replace("_exps.", f".{e}.")] = x


def fused(tensors):
    """Gate and up of all experts as one tensor."""
    for key in [key for key in tensors if key.endswith("ffn_gate_exps.weight")]:
        both = [tensors.pop(each) for each in (key, key.replace("gate", "up"))]
        tensors[key.replace("gate", "gate_up")] = np.concatenate(both, axis=1)


def by_key_heads(tensors):
    """Qwen3-Next's q, k, v and z as one tensor, as the first converters left it."""
    whole = load_file(models.GOLDEN / "qwen3_next/model.safetensors")
    for key in [key for key in tensors if key.endswith("attn_gate.weight")]:
        block = key.split(".")[1]
        del tensors[key], tensors[f"blk.{block}.attn_qkv.weight"]
        x = whole[f"layers.{block}.linear_attn.in_proj_qkvz.weight"]
        tensors[f"blk.{block}.ssm_in.weight"] = x


@pytest.mark.parametrize(
    ("name", "change"),
    [("mixtral", apart), ("qwen3_moe", fused), ("qwen3_next", fused), ("qwen3_next", by_key_heads)],
)
def test_other_layouts_give_the_same_parameters(files, tmp_path, name, change):
    tensors = gguf_tensors(name)
    change(tensors)
    other = gguf_models.golden_file(tmp_path / "x.gguf", name, *CASES[name], tensors=tensors)
    loaded, whole = load(GgufFile(other)), load(files(name))
    assert loaded.config == whole.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, whole.params)


def keys_with_values(tensors):
    """DeepSeek's keys and values as one tensor, as before April 2025."""
    whole = load_file(models.GOLDEN / "deepseek_v3/model.safetensors")
    for key in [key for key in tensors if key.endswith("attn_k_b.weight")]:
        del tensors[key], tensors[key.replace("k_b", "v_b")]
        x = whole[f"layers.{key.split('.')[1]}.self_attn.kv_b_proj.weight"]
        tensors[key.replace("k_b", "kv_b")] = x


@pytest.mark.slow
def test_older_and_newer_files_of_deepseek_are_the_same_model(files, tmp_path, monkeypatch):
    def write(writer):
        for part, width in (("key", 10), ("value", 8)):
            for name in (f"attention.{part}_length", f"attention.{part}_length_mla"):
                del writer.kv_data[0][f"deepseek2.{name}"]
            writer.add_uint32(f"deepseek2.attention.{part}_length", width)
        del writer.kv_data[0]["deepseek2.attention.head_count_kv"]
        writer.add_head_count_kv(2)

    tensors = gguf_tensors("deepseek_v3")
    keys_with_values(tensors)
    case = ("deepseek_v3", *CASES["deepseek_v3"])
    older = gguf_models.golden_file(tmp_path / "x.gguf", *case, tensors=tensors, write=write)
    # Rows of a part of a head, of tensors that lie by head.
    monkeypatch.setattr("routerjax.encoder.weights.loading.PIECE_BYTES", 100)
    one, other = load(GgufFile(older)), load(files("deepseek_v3"))
    assert one.config == other.config
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert one.digest == models.load(models.GOLDEN / "deepseek_v3").digest


def test_a_split_model_in_small_pieces_is_the_same(files, tmp_path, monkeypatch):
    whole = load(files("llama"))
    gguf_models.golden_file(tmp_path / "x.gguf", "llama", "llama", split_max_tensors=7)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 5
    # Rows of a head alone, whose rotary pairs lie side by side in the file.
    monkeypatch.setattr("routerjax.encoder.weights.loading.PIECE_BYTES", 300)
    loaded = load(GgufFile(parts[0]))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, whole.params)
    assert loaded.digest == whole.digest == models.load(models.GOLDEN / "llama").digest


def test_packed_experts_load_as_their_numbers(tmp_path):
    rng, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.MXFP4
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    tensors = {
        "output_norm.weight": np.ones(64, np.float32),
        "token_embd.weight": rng.standard_normal((64, 64)).astype(np.float32),
    }
    shapes = {
        "attn_norm.weight": (64,), "post_attention_norm.weight": (64,),
        "attn_q.weight": (32, 64), "attn_k.weight": (16, 64), "attn_v.weight": (16, 64),
        "attn_q.bias": (32,), "attn_k.bias": (16,), "attn_v.bias": (16,),
        "attn_output.weight": (64, 32), "attn_output.bias": (64,), "attn_sinks.weight": (4,),
        "ffn_gate_inp.weight": (4, 64), "ffn_gate_inp.bias": (4,),
        "ffn_gate_exps.bias": (4, 32), "ffn_up_exps.bias": (4, 32), "ffn_down_exps.bias": (4, 64),
    }  # fmt: skip
    for name, shape in shapes.items():
        tensors[f"blk.0.{name}"] = rng.standard_normal(shape).astype(np.float32)
    blocks = {
        f"blk.0.ffn_{part}_exps.weight": gguf.quantize(
            rng.standard_normal(shape).astype(np.float32), kind
        )
        for part, shape in {"gate": (4, 32, 64), "up": (4, 32, 64), "down": (4, 64, 32)}.items()
    }
    written = {
        "packed": {name: (x, kind) for name, x in blocks.items()},
        "plain": {name: gguf.dequantize(x, kind) for name, x in blocks.items()},
    }
    packed, plain = (
        load(GgufFile(gguf_models.golden_file(
            tmp_path / f"{name}.gguf", "gpt_oss", "gpt-oss", sizes, tensors=tensors | experts
        )))
        for name, experts in written.items()
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, packed.params, plain.params)
    assert packed.digest != plain.digest  # The one is of bytes.


def test_quantised_tensors_load_as_their_numbers(files, tmp_path):
    """Rows of a quantised q are of blocks, and its heads turned as those of a plain one."""
    kind = gguf.GGMLQuantizationType.Q8_0
    tensors = gguf_tensors("llama")
    quantised, plain = dict(tensors), dict(tensors)
    for name, x in tensors.items():
        if x.ndim == 2 and x.shape[1] % 32 == 0:
            quantised[name] = (gguf.quantize(x, kind), kind)
            plain[name] = gguf.dequantize(quantised[name][0], kind)
    assert len([x for x in quantised.values() if isinstance(x, tuple)]) > 10
    one, other = (
        load(GgufFile(gguf_models.golden_file(
            tmp_path / f"{i}.gguf", "llama", "llama", tensors=each
        )))
        for i, each in enumerate((quantised, plain))
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


REFUSED = {
    "architecture": ("falcon", {}, {}, "general.architecture is 'falcon'; of GGUF files those are"),
    "gemma 1": (
        "gemma",
        {},
        {},
        "'gemma'; of GGUF files those are supported: bert, deepseek2, gemma2",
    ),
    "layers of different shapes": (
        "llama",
        {"llama.feed_forward_length": [40, 40, 20]},
        {},
        "layers of different shapes",
    ),
    "an unknown stretch": (
        "llama",
        {"llama.rope.scaling.type": "odd"},
        {},
        "rope.scaling.type 'odd' is not supported",
    ),
    "a lost tensor": ("llama", {}, {"blk.1.attn_q.weight": None}, "missing: blk.1.attn_q.weight"),
    "one too many": (
        "llama",
        {},
        {"blk.0.odd.weight": np.ones(3, np.float32)},
        r"unexpected: blk.0.odd.weight \(3,\)",
    ),
    "no embedding": ("llama", {}, {"token_embd.weight": None}, "'token_embd.weight' is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_with_the_files_name(tmp_path, case):
    architecture, metadata, changes, message = REFUSED[case]

    def write(writer):
        for key, value in metadata.items():
            writer.kv_data[0].pop(key, None)
            add = {list: writer.add_array, str: writer.add_string, bool: writer.add_bool}
            add[type(value)](key, value)

    tensors = {k: x for k, x in (gguf_tensors("llama") | changes).items() if x is not None}
    path = gguf_models.golden_file(
        tmp_path / "x.gguf", "llama", architecture, tensors=tensors, write=write
    )
    with pytest.raises(ValueError, match=message) as error:
        load(GgufFile(path))
    assert str(path) in str(error.value)


def test_blocks_that_predict_further_tokens_are_left_out(files, tmp_path):
    def write(writer):
        writer.kv_data[0].pop("glm4moe.block_count")
        writer.add_block_count(4)
        writer.add_nextn_predict_layers(1)

    others = {f"blk.3.{x}.weight": np.ones(4, np.float32) for x in ("attn_q", "nextn.eh_proj")}
    path = gguf_models.golden_file(
        tmp_path / "x.gguf", *("glm4_moe", "glm4moe"), tensors=gguf_tensors("glm4_moe") | others,
        write=write,
    )  # fmt: skip
    assert load(GgufFile(path)).digest == load(files("glm4_moe")).digest


def test_other_scores_of_experts_are_refused(tmp_path):
    def write(writer):
        writer.kv_data[0].pop("glm4moe.expert_gating_func")
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)

    path = gguf_models.golden_file(tmp_path / "x.gguf", "glm4_moe", "glm4moe", write=write)
    with pytest.raises(ValueError, match="glm4moe is supported with sigmoid scores") as error:
        load(GgufFile(path))
    assert str(path) in str(error.value)


def test_a_head_and_rotary_tables_are_left_out(files, tmp_path):
    others = {"output.weight": np.ones((64, 32), np.float32), "cls.bias": np.ones(2, np.float32)}
    others |= {"blk.1.attn_rot_embd.weight": np.ones(4, np.float32)}
    tensors = gguf_tensors("llama") | others
    path = gguf_models.golden_file(tmp_path / "x.gguf", "llama", "llama", tensors=tensors)
    assert load(GgufFile(path)).digest == load(files("llama")).digest
