"""Blocks of alternating kinds: stacked by their repeating group, with the numbers of a plain loop.

No family has them in this file: a second feed-forward kind stands in, once with the same parameters
(so that every arrangement must give the same numbers), once with others.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from routerjax.encoder.capture import Graph, capture
from routerjax.encoder.families.config import BlockKind
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.models import decoder
from routerjax.encoder.selection import Selection
from routerjax.encoder.weights.loading import make_model
from tests.encoder import tiny_models as models

PLAIN, TWIN, NARROW = BlockKind(), BlockKind(ffn="twin"), BlockKind(ffn="narrow")


class Narrow(nnx.Module):
    """A feed-forward kind with parameters of its own: one product, no activation."""

    def __init__(self, config, tuning, linear, rngs):
        self.only = linear(config.width, config.width, use_bias=False, rngs=rngs)

    def __call__(self, x_BTD):
        return self.only(x_BTD)


@pytest.fixture(autouse=True)
def further_kinds(monkeypatch):
    monkeypatch.setitem(decoder.FEED_FORWARDS, "twin", decoder.FEED_FORWARDS["dense"])
    monkeypatch.setitem(decoder.FEED_FORWARDS, "narrow", Narrow)


def run(encoder, batch, layers):
    poolings = ("last", "mean")
    return capture(
        Graph(encoder.graphdef), encoder.params, *batch, selection=Selection(layers, poolings)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds, lead, period",
    [
        ((PLAIN, PLAIN, PLAIN), 0, 1),
        ((PLAIN, TWIN, PLAIN), 0, 2),
        ((TWIN, PLAIN, PLAIN), 1, 1),
        pytest.param((PLAIN, PLAIN, TWIN), 0, 3, marks=pytest.mark.slow),
    ],
)
def test_the_arrangement_in_stacks_changes_neither_numbers_nor_digest(kinds, lead, period):
    folder = models.GOLDEN / "qwen3_wide"  # Windows that differ between layers.
    one, many = models.load(folder), models.load(folder, kinds=kinds)
    assert (many.config.lead, many.config.period) == (lead, period)
    assert len(nnx.merge(many.graphdef, many.params).blocks) == lead + period
    assert many.digest == one.digest
    tokens_BT, lengths_B, expected = models.golden_states("qwen3_wide")
    states = models.our_states(many, tokens_BT, lengths_B)
    assert models.worst_error(states, expected, lengths_B) < 1e-5
    spans_B2 = np.stack([0 * lengths_B, lengths_B], axis=1)
    batch = (tokens_BT, lengths_B, spans_B2)
    for layers in ((0,), (1,), (0, 2), (1, 2), (0, 1, 2, 3), (3,)):
        h_LPBD = run(many, batch, layers)
        np.testing.assert_allclose(h_LPBD, run(one, batch, layers), rtol=1e-5, atol=1e-5)


def random_encoder(n_layers, kinds):
    raw = {"model_type": "qwen3", **models.VARIANTS["qwen3"][1], "num_hidden_layers": n_layers}
    config = dataclasses.replace(read_config(raw), kinds=kinds)
    return models.Loaded(config, *models.drawn(config), "")


@pytest.mark.parametrize(
    "kinds, lead, period",
    [
        # Two whole groups and one block more.
        pytest.param((PLAIN, NARROW, NARROW) * 2 + (PLAIN,), 0, 3, marks=pytest.mark.slow),
        ((NARROW, NARROW) + (PLAIN, NARROW) * 2 + (PLAIN,), 1, 2),
    ],
)
def test_kinds_with_other_parameters_give_the_numbers_of_a_plain_loop(kinds, lead, period):
    encoder = random_encoder(7, kinds)
    assert (encoder.config.lead, encoder.config.period) == (lead, period)
    tokens_BT, lengths_B = models.random_batch((9, 4, 1))
    batch = (tokens_BT, lengths_B, np.stack([0 * lengths_B, lengths_B], axis=1))
    states = models.our_states(encoder, tokens_BT, lengths_B)
    last = states[:, np.arange(3), lengths_B - 1]
    for layers in (tuple(range(8)), (1,), (3, 5), (4,), (6,)):
        h_LPBD = run(encoder, batch, layers)
        # The state after block 6 is index 7, behind the final norm; the others are before it.
        np.testing.assert_allclose(h_LPBD[:, 0], last[list(layers)], rtol=1e-4, atol=1e-5)


def trace(n_layers, kinds, depth):
    raw = {"model_type": "qwen3", **models.VARIANTS["qwen3"][1], "num_hidden_layers": n_layers}
    config = dataclasses.replace(read_config(raw), kinds=kinds)
    graphdef, params = nnx.split(
        nnx.eval_shape(
            lambda: make_model(config, jnp.float32, models.HIGHEST, models.CPU, nnx.Rngs(0))
        )
    )
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((2, 8), (2,), (2, 2))]
    layers = tuple(range(depth + 1))
    return capture.trace(Graph(graphdef), params, *shapes, selection=Selection(layers, ("last",)))


@pytest.mark.parametrize(
    "lead, group", [((), (PLAIN,)), ((), (NARROW, NARROW, NARROW, PLAIN)), ((NARROW,), (PLAIN,))]
)
def test_the_program_does_not_grow_with_depth(lead, group):
    shallow, deep, rest = (
        trace(n + len(lead), lead + group * (n // len(group)), depth + len(lead)).lower().as_text()
        for n, depth in ((8, 8), (64, 64), (64, 63))
    )
    assert deep.count("dot_general") == shallow.count("dot_general") >= 7
    # Only literals differ: numbers of layers, and one entry a layer of its window and its slot.
    assert len(deep.splitlines()) == len(shallow.splitlines())
    blank = [re.sub(r"dense<[^>]*>|\d+", "", text) for text in (shallow, deep)]
    assert blank[0] == blank[1]
    # A state within a group costs the blocks before it once more, and no others.
    assert rest.count("dot_general") <= 2 * deep.count("dot_general")


def test_a_group_scans_as_often_as_it_is_repeated():
    program = str(trace(16, (NARROW, PLAIN) * 8, 11).jaxpr)
    assert re.findall(r" length=(\d+)", program) == ["5"]  # And one block after it.


def test_lead_and_period_of_kinds():
    def stacking(*kinds):
        raw = {"model_type": "qwen3", **models.VARIANTS["qwen3"][1]}
        raw |= {"num_hidden_layers": len(kinds)}
        config = dataclasses.replace(read_config(raw), kinds=kinds)
        stacks = [config.blocks_of(s) for s in range(config.lead + config.period)]
        assert sorted(i for blocks in stacks for i in blocks) == list(range(len(kinds)))
        assert all(len({kinds[i] for i in blocks}) == 1 for blocks in stacks)
        return config.lead, config.period

    assert stacking(PLAIN) == (0, 1)
    assert stacking(PLAIN, TWIN, PLAIN, TWIN, PLAIN) == (0, 2)
    assert stacking(PLAIN, PLAIN, TWIN, PLAIN, PLAIN) == (0, 3)
    assert stacking(TWIN, PLAIN, PLAIN, PLAIN) == (1, 1)
    assert stacking(TWIN, TWIN, TWIN, PLAIN, NARROW, PLAIN, NARROW) == (3, 2)
    assert stacking(PLAIN, TWIN, NARROW) == (0, 3), "nothing repeats"
