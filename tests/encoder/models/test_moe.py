"""Experts: sorted blocks and ragged products equal a plain loop, and cost what the tokens need."""

import functools

import jax
import numpy as np
import pytest

from routerjax.encoder.families.config import BlockKind, Routing
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.models import moe
from routerjax.runtime.tuning import Tuning
from tests.encoder import tiny_models as models

D, F = 24, 20


choose_experts = jax.jit(moe.choose_experts, static_argnums=(1, 2, 3))


def silu_gate(gate, up):
    return jax.nn.silu(gate) * up


def random_experts(n_experts, bias, seed=0):
    rng = np.random.default_rng(seed)

    def product(n_in, n_out):
        kernel = rng.normal(size=(n_experts, n_in, n_out)).astype(np.float32) * n_in**-0.5
        return kernel, rng.normal(size=(n_experts, n_out)).astype(np.float32) if bias else None

    return {"gate": product(D, F), "up": product(D, F), "down": product(F, D)}


def by_a_loop(x_ND, experts_NK, weights_NK, experts):
    """Every token through its experts, one after the other, in float64."""

    def linear(x, name, e):
        kernel, bias = (None if w is None else w[e].astype(np.float64) for w in experts[name])
        return x @ kernel + (0 if bias is None else bias)

    y_ND = np.zeros(x_ND.shape)
    for n, x in enumerate(x_ND.astype(np.float64)):
        for e, weight in zip(experts_NK[n], weights_NK[n], strict=True):
            if e < len(experts["gate"][0]):
                gate = linear(x, "gate", e)
                inner = gate / (1 + np.exp(-gate)) * linear(x, "up", e)
                y_ND[n] += weight * linear(inner, "down", e)
    return y_ND


def routing(name, n_tokens, n_experts, k):
    """[N, K] distinct experts of every token."""
    rng = np.random.default_rng(1)
    if name == "even":
        return np.stack([rng.permutation(n_experts)[:k] for _ in range(n_tokens)])
    if name == "all on the same":
        return np.tile(np.arange(n_experts - k, n_experts), (n_tokens, 1))
    if name == "one by one":  # Every expert has another number of tokens, some have none.
        return np.stack(
            [(n * n // 3 + np.arange(k) * 2) % (n_experts - 1) for n in range(n_tokens)]
        )
    assert name == "some elsewhere"  # Number n_experts: an expert on another device.
    return np.minimum(routing("even", n_tokens, n_experts + 3, k), n_experts)


ROUTINGS = ("even", "all on the same", "one by one", "some elsewhere")


@functools.partial(jax.jit, static_argnames="tuning")
def run(x_ND, experts_NK, weights_NK, experts, tuning=models.CPU):
    highest = jax.lax.Precision.HIGHEST
    return moe.mix_experts(x_ND, experts_NK, weights_NK, experts, silu_gate, highest, tuning)


@pytest.mark.parametrize("tuning", [Tuning.cpu(), Tuning.tpu()], ids=["cpu", "tpu"])
@pytest.mark.parametrize("name", ROUTINGS)
def test_the_sum_over_experts_equals_a_plain_loop(name, tuning):
    rng = np.random.default_rng(2)
    for n_tokens, bias in ((70, True), (1, False)):
        x_ND = rng.normal(size=(n_tokens, D)).astype(np.float32)
        weights_NK = rng.random((n_tokens, 3)).astype(np.float32)
        experts_NK = routing(name, n_tokens, 7, 3)
        experts = random_experts(7, bias)
        expected = by_a_loop(x_ND, experts_NK, weights_NK, experts)
        y_ND = run(x_ND, experts_NK, weights_NK, experts, tuning)
        np.testing.assert_allclose(y_ND, expected, rtol=1e-4, atol=1e-5)


def test_a_token_does_not_see_the_others():
    rng = np.random.default_rng(3)
    x_ND = rng.normal(size=(40, D)).astype(np.float32)
    experts_NK, weights_NK = routing("even", 40, 7, 2), rng.random((40, 2)).astype(np.float32)
    experts = random_experts(7, bias=False)
    together = run(x_ND, experts_NK, weights_NK, experts)
    # The others move elsewhere, all of them to one expert, with other values.
    x_ND[1:], experts_NK[1:] = 1e3 * x_ND[:-1], experts_NK[0]
    again = run(x_ND, experts_NK, weights_NK, experts)
    np.testing.assert_allclose(again[0], together[0], rtol=1e-5, atol=1e-6)


def test_weights_of_the_chosen_experts():
    logits_NX = np.array([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, 4.0]], np.float32)
    odds = np.exp(logits_NX)
    experts_NK, weights_NK = choose_experts(logits_NX, 2, "all")
    np.testing.assert_array_equal(experts_NK, [[1, 3], [0, 3]])
    chosen = np.take_along_axis(odds, np.asarray(experts_NK), 1)
    np.testing.assert_allclose(weights_NK, chosen / odds.sum(1, keepdims=True), rtol=1e-6)
    _, weights_NK = choose_experts(logits_NX, 2, "chosen")
    np.testing.assert_allclose(weights_NK, chosen / chosen.sum(1, keepdims=True), rtol=1e-6)


# --- what it costs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigmoid", "best", "softmax", "scale"),
    [(True, 2, "chosen", 2.5), (True, 2, "all", 1.0), (False, 1, "all", 16.0)],
)
def test_experts_come_from_the_best_groups_and_weigh_what_they_score(sigmoid, best, softmax, scale):
    rng = np.random.default_rng(5)
    logits_NX = rng.normal(size=(50, 12)).astype(np.float32)
    correction_X = (0.1 * rng.normal(size=12)).astype(np.float32)
    kind = Routing(sigmoid, True, 4, 2, best, scale)
    experts_NK, weights_NK = map(
        np.asarray, choose_experts(logits_NX, 3, softmax, kind, correction_X)
    )
    outside = 0
    for logits_X, experts_K, weights_K in zip(logits_NX, experts_NK, weights_NK, strict=True):
        odds_X = np.exp(logits_X.astype(np.float64))
        scores_X = odds_X / (1 + odds_X) if sigmoid else odds_X / odds_X.sum()
        corrected_X = scores_X + correction_X
        groups = [np.sort(group)[-best:].sum() for group in corrected_X.reshape(4, 3)]
        kept = np.argsort(groups)[-2:]
        allowed = [x for x in range(12) if x // 3 in kept]
        expected = sorted(allowed, key=lambda x: -corrected_X[x])[:3]
        outside += expected != sorted(range(12), key=lambda x: -corrected_X[x])[:3]
        assert experts_K.tolist() == expected
        weights = scores_X[expected] / (scores_X[expected].sum() if softmax == "chosen" else 1)
        np.testing.assert_allclose(weights_K, scale * weights, rtol=1e-5)
    assert outside > 5, "groups made no difference"


def executed_products(n_experts, name, monkeypatch, n_tokens, k=4):
    """Multiplications of rows with experts' matrices, counted while the program runs.

    XLA's cost analysis counts a loop's body once, so it gives the cost of one block; how many
    blocks there are is counted by a callback out of each of them.
    """
    rows = []

    def counted(x_RD, *args):
        jax.debug.callback(lambda n: rows.append(int(n)), x_RD.shape[0])
        return original(x_RD, *args)

    original = moe._expert
    x_ND = np.ones((n_tokens, D), np.float32)
    experts_NK = routing(name, n_tokens, n_experts, k)
    weights_NK, experts = np.ones((n_tokens, k), np.float32), random_experts(n_experts, False)

    def mixed(x_ND, experts_NK, weights_NK, experts):
        return moe.mix_experts(
            x_ND, experts_NK, weights_NK, experts, silu_gate, models.HIGHEST, models.CPU
        )

    args = (x_ND, experts_NK, weights_NK, experts)
    one_block = jax.jit(mixed).lower(*args).compile().cost_analysis()["flops"]
    with monkeypatch.context() as patch:
        patch.setattr(moe, "_expert", counted)
        jax.block_until_ready(jax.jit(lambda *args: mixed(*args))(*args))
        jax.effects_barrier()
    products = 3 * D * F
    # One block's products, what surrounds them, and nothing that grows with the experts.
    assert 2 * products * rows[0] <= one_block <= 2 * products * rows[0] + 60 * n_tokens * k * D
    return sum(rows) * products, n_tokens * k * products


@pytest.mark.parametrize(
    "name, n_tokens",
    [("even", 256), ("all on the same", 256), ("one by one", 256), ("even", 16)],
)
def test_many_experts_cost_little_more_than_few(name, n_tokens, monkeypatch):
    few, needed = executed_products(8, name, monkeypatch, n_tokens)
    many, _ = executed_products(128, name, monkeypatch, n_tokens)
    assert needed <= few and needed <= many
    assert many <= 2 * few and many <= 2 * needed


def test_rows_of_a_tile():
    assert [moe.tile_rows(8192, x) for x in (8, 64, 128, 100)] == [256, 128, 64, 64]
    assert moe.tile_rows(16, 128) == 2 and moe.tile_rows(10**6, 1) == 256


@pytest.mark.parametrize(("platform", "tuning"), [("tpu", Tuning.tpu()), ("cuda", Tuning.gpu())])
def test_other_platforms_lower_ragged_products_and_no_loop_over_tiles(platform, tuning):
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        (
            np.ones((64, D), np.float32),
            np.ones((64, 2), np.int32),
            np.ones((64, 2), np.float32),
            random_experts(8, True),
        ),
    )
    traced = run.trace(*shapes, tuning=tuning)
    ragged = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "ragged_dot" in ragged and "HIGHEST" in ragged and "dynamic_update_slice" not in ragged
    here = run.lower(*shapes).as_text()
    assert "ragged_dot" not in here and "dynamic_update_slice" in here


def test_flops_count_the_experts_of_a_token_alone():
    raw = {"model_type": "qwen3_moe", **models.VARIANTS["qwen3_moe"][1]}
    raw |= {"num_experts": 128, "num_experts_per_tok": 8}
    config = read_config(raw)
    assert config.kinds == (BlockKind(), moe_kind := BlockKind(ffn="experts"), moe_kind)
    T, width = 10, 16
    attention = 2 * width * (2 * 2 + 2) * 8 + 4 * 2 * 8 * T
    dense, experts = 3 * width * 20, width * 128 + 8 * 3 * width * 12
    assert config.flops(T, 1) == T * (attention + 2 * dense)
    assert config.flops(T, 3) - config.flops(T, 2) == T * (attention + 2 * experts)


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v2"])
def test_flops_of_a_token_are_its_kernels_and_its_scores(name):
    encoder = models.load(models.GOLDEN / name)
    config, block = encoder.config, encoder.params["blocks"][0]  # Without experts.
    kernels = sum(
        x.size for path, x in jax.tree_util.tree_leaves_with_path(block) if "kernel" in str(path)
    )
    scores = config.n_heads * (config.head_dim + config.latent.value_dim)
    assert config.flops(10, 1) == 10 * 2 * (kernels + 10 * scores)
