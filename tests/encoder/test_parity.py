"""Every hidden state equals Hugging Face's: against golden files always, against torch where it is.

The golden files (tiny random models and torch's states of a batch of unequal lengths) are written
by `python -m tests.encoder.make_golden`, from the repository root, with torch installed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from routerjax.encoder.capture import Graph, capture
from routerjax.encoder.families.config import FULL_ATTENTION
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.families.rope import Rope
from routerjax.encoder.models.feed_forward import ACTIVATIONS
from routerjax.encoder.pooling import POOLINGS
from routerjax.encoder.selection import Selection
from routerjax.runtime.tuning import Tuning
from tests.encoder import tiny_models as models

TOLERANCE = 1e-4  # of the largest absolute value of each hidden state


@pytest.fixture(scope="module")
def golden():
    """name -> (our encoder, tokens_BT, lengths_B, torch's states), each loaded once."""
    return functools.cache(
        lambda name: (models.load(models.GOLDEN / name), *models.golden_states(name))
    )


def pool_numpy(states, lengths_B, spans_B2):
    """[L, P, B, D] in float64, row by row, poolings in the order of POOLINGS."""
    out = np.zeros((len(states), len(POOLINGS), len(lengths_B), states.shape[-1]))
    for b, (length, (start, end)) in enumerate(zip(lengths_B, spans_B2, strict=True)):
        x_LTD = states[:, b, :length].astype(np.float64)
        at = [start + (end - start - 1) * quarter // 4 for quarter in (1, 2, 3)]
        rows = [x_LTD[:, -1], x_LTD.mean(1), x_LTD[:, start:end].mean(1), x_LTD[:, 0]]
        rows += [x_LTD.max(1), *(x_LTD[:, t] for t in at)]
        out[:, :, b] = np.stack(rows, axis=1)
    return out


def test_golden_files_cover_every_variant():
    folders = sorted(path.name for path in models.GOLDEN.iterdir())
    assert folders == sorted([*models.VARIANTS, "minilm", "smollm2"])
    files = [path for path in models.GOLDEN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4e6


# Each of their switches is another's too: of these the golden states alone, most of them late.
_LATE = ("ernie4_5", "gemma", "granite_hybrid", "granite_micro", "nemotron_h_experts", "nomic_bert")
_FEW = (*_LATE, "starcoder2")
_EVERY = [
    pytest.param(name, marks=[pytest.mark.slow] if name in _LATE else [])
    for name in models.VARIANTS
]
_MOST = [name for name in models.VARIANTS if name not in _FEW]


@pytest.mark.parametrize("name", _EVERY)
def test_every_state_of_every_token_equals_the_golden_one(golden, name):
    encoder, tokens_BT, lengths_B, expected = golden(name)
    states = models.our_states(encoder, tokens_BT, lengths_B)
    assert states.shape == expected.shape
    assert models.worst_error(states, expected, lengths_B) < TOLERANCE


# With interleaved pairs, with sinks and windows, and, in the slow set, all of them.
_AS_ON_A_TPU = [
    pytest.param(name, marks=[] if name in ("glm4", "gpt_oss") else [pytest.mark.slow])
    for name in _MOST
]


@pytest.mark.parametrize("name", _AS_ON_A_TPU)
def test_the_program_of_a_tpu_gives_the_golden_states_too(name):
    encoder = models.load(models.GOLDEN / name, tuning=Tuning.tpu())
    tokens_BT, lengths_B, expected = models.golden_states(name)
    states = models.our_states(encoder, tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < TOLERANCE


@pytest.mark.parametrize("name", ["bert", "qwen2", "qwen3_wide"])
def test_capture_pools_the_golden_states(golden, name):
    encoder, tokens_BT, lengths_B, expected = golden(name)
    spans_B2 = np.array([[3, 14], [1, 2], [0, 11]], np.int32)
    layers = tuple(range(encoder.config.n_states))
    h_LPBD = capture(
        Graph(encoder.graphdef), encoder.params, tokens_BT, lengths_B, spans_B2,
        selection=Selection(layers, POOLINGS),
    )  # fmt: skip
    expected = pool_numpy(expected, lengths_B, spans_B2)
    scale_L = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(h_LPBD - expected) / scale_L).max() < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, changes",
    [
        ("llama", {"ropes": (Rope(500.0, 8),)}),
        ("llama", {"norm_eps": 1e-2}),
        ("llama_rope", {"ropes": (Rope(10000.0, 8),)}),
        ("mistral", {"windows": (FULL_ATTENTION,) * 3}),
        ("mistral", {"windows": (6, 6, 6)}),
        ("qwen2", {"windows": (6, 6, 6)}),
        ("qwen3_wide", {"windows": (FULL_ATTENTION, 4, FULL_ATTENTION)}),
        ("qwen3", {"activation": "gelu"}),
        ("exaone4", {"rope_of_layer": (0, 0, 0)}),
        ("exaone4", {"windows": (FULL_ATTENTION,) * 3}),
        ("glm4", {"ropes": (Rope(20.0, 4),)}),
        ("glm4", {"ropes": (Rope(20.0, 8, interleaved=True),)}),
        ("qwen3_vl_moe", {"expert_softmax": "all"}),
        ("gemma3_embedding", {"bidirectional": False}),
        ("gemma3_embedding", {"windows": (6, FULL_ATTENTION, 6)}),
        ("mistral_embedding", {"windows": (4, 4, 4)}),
        ("mistral_embedding", {"last_normed": True}),
        ("bert", {"activation": "gelu_tanh"}),
    ],
)
def test_parity_would_notice_a_wrong_setting(golden, name, changes):
    _, tokens_BT, lengths_B, expected = golden(name)
    wrong = models.load(models.GOLDEN / name, **changes)
    states = models.our_states(wrong, tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) > TOLERANCE


@pytest.mark.parametrize("name", _MOST)
@pytest.mark.slow
def test_every_state_equals_that_of_torch(name, tmp_path):
    pytest.importorskip("torch")
    model = models.build(name, seed=11)
    model.save_pretrained(tmp_path)  # With its head, where the golden files are of base models.
    tokens_BT, lengths_B = models.random_batch((40, 1, 17, 33), seed=5)
    expected = models.hf_states(model, tokens_BT, lengths_B)
    states = models.our_states(models.load(tmp_path), tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < TOLERANCE


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_fast", "relu", "swish"])
def test_activations_equal_those_of_torch(activation):
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2FN

    x = np.linspace(-6, 6, 401, dtype=np.float32)
    raw = {"model_type": "bert", "hidden_act": activation} | models.VARIANTS["bert"][1]
    ours = ACTIVATIONS[read_config(raw).activation](jnp.asarray(x))
    theirs = ACT2FN[activation](torch.tensor(x)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_every_state_of_minilm_equals_the_golden_one(minilm):
    tokens_BT, lengths_B, expected = models.golden_states("minilm")
    states = models.our_states(models.load(minilm), tokens_BT, lengths_B)
    assert len(states) == 7
    assert models.worst_error(states, expected, lengths_B) < TOLERANCE


@pytest.mark.slow
def test_every_state_of_minilm_equals_that_of_torch(minilm):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    tokens_BT, lengths_B = models.random_batch((96, 7, 50), vocab_size=30000, seed=3)
    expected = models.hf_states(model, tokens_BT, lengths_B)
    states = models.our_states(models.load(minilm), tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("bert", "qwen3_wide", "gemma2", "modernbert_bias")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in _MOST
    ],
)
def test_bfloat16_stays_near_float32(golden, name):
    """`-m "slow or not slow" -s -k bfloat16` prints the error of every hidden state."""
    _, tokens_BT, lengths_B, expected = golden(name)
    encoder = models.load(models.GOLDEN / name, dtype=jnp.bfloat16)
    states = models.our_states(encoder, tokens_BT, lengths_B)
    assert states.dtype == jax.dtypes.bfloat16
    errors = models.errors_of(states.astype(np.float32), expected, lengths_B)
    print(f"{name:16} " + " ".join(f"{error:.4f}" for error in errors))
    # Eight bits of mantissa, weights large enough for attention to be steep, and as few channels as
    # 16: torch in bfloat16 is as far off.
    assert errors[0] < 2**-7
    off_LBT = models.errors_of_tokens(states.astype(np.float32), expected, lengths_B) > 0.2
    # Rounding may send a token that lies between two experts to the other one: a rare jump.
    mixture = any(kind.ffn == "experts" for kind in encoder.config.kinds)
    assert off_LBT.sum(axis=(1, 2)).max() <= (lengths_B.sum() // 20 if mixture else 0)
