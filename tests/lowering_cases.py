"""Every jitted function of the project with small abstract arguments; the table of test_lowering.

Not a test. A key is the file and the function that is jitted, or in which something is.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from routerjax.encoder.capture import Graph, capture, read_prefix
from routerjax.encoder.extraction import block_buffer as block_buffer
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.models import products
from routerjax.encoder.pooling import POOLINGS
from routerjax.encoder.selection import Selection
from routerjax.encoder.weights import loading as loading
from routerjax.encoder.weights import mxfp4
from routerjax.evaluation import calibration
from routerjax.export.program import probabilities as program_of
from routerjax.features import fit, moments, part, pca, projected, sketch
from routerjax.features.pca import Axes
from routerjax.probes import probe
from routerjax.probes.streaming import captured, sketched, stream_probe
from routerjax.probes.streaming import totals as totals
from routerjax.runtime.devices import make_mesh, replicated
from routerjax.runtime.tuning import Tuning
from routerjax.stats import auc_replicates, bootstrap, fisher_replicates
from routerjax.store import shards
from routerjax.studies import embedding_baselines
from routerjax.sweeps import controls, cross_validation, evaluator
from routerjax.trunk import kernel, loop, net, step
from tests.encoder.tiny_models import GOLDEN
from tests.export import by_hand

L, P, R, D, M, C, F, K, N, Q = 2, 2, 6, 8, 3, 4, 2, 2, 12, 4


class Case(NamedTuple):
    """A jitted function and what it is traced with."""

    function: Any
    args: tuple[Any, ...]
    options: dict[str, Any] = {}


# Made when asked for: a line that is out of date fails alone.
Table = dict[str, Callable[[], list[Case]]]


def _of(function: Any, *args: Any, **options: Any) -> Case:
    return Case(function, args, options)


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def whole(*shape: int) -> jax.ShapeDtypeStruct:
    return array(*shape, dtype=jnp.int32)


class _Called(Exception):
    """Carries a case out of the function in which it is jitted."""


def _inside(call: Callable[[], Any]) -> Case:
    """What is jitted and called inside of `call`."""
    jit = jax.jit

    def spy(function: Any, **options: Any) -> Any:
        def run(*args: Any) -> None:
            raise _Called(Case(jit(function, **options), args))

        return run

    with mock.patch.object(jax, "jit", spy):
        try:
            call()
        except _Called as called:
            return called.args[0]
    raise AssertionError("nothing was jitted and called")


_BLOCK = (array(L, P, R, D), array(R), array(R, M))
_SEED = whole()


def _by_columns() -> jax.sharding.NamedSharding:
    """Of a stack of kernels, as sharding.py splits their outputs."""
    return jax.sharding.NamedSharding(
        make_mesh("model:2"), jax.sharding.PartitionSpec(None, None, "model")
    )


@functools.cache
def _moments(*lead: int, gram: bool = True, width: int = D) -> Any:
    block = (array(*lead, R, width), *_BLOCK[1:])
    running = jax.eval_shape(functools.partial(moments.begin, gram=gram), *block)
    return running, jax.eval_shape(moments.finish, running)


def _axes(*lead: int) -> Axes:
    return Axes(array(*lead, D), array(*lead, D), array(*lead, D, C))


def _projected(*lead: int) -> Any:
    shapes = ((M, 2), (M, 2, C), (M, 2, C), (1, C, C))
    return projected.ProjectedSums(*(array(*lead, *shape) for shape in shapes))


@functools.cache
def _site_cases() -> dict[str, list[Case]]:
    """Of totals: with each sum and each number that the streaming probe takes."""
    mesh = make_mesh("data:2")
    x_SRD, (_, weight_R, y_RM) = array(4, R, D), _BLOCK
    j, signs = whole(), array(D, K)
    make = _of(totals._make, sketched.pilot_of, mesh, j, x_SRD, weight_R)
    pilot = jax.eval_shape(
        lambda *args: totals._make(sketched.pilot_of, mesh, *args), *make.args[2:]
    )
    found: dict[str, list[Case]] = {"_make": [make], "_zeros": [], "_add": [], "_map": []}
    passes = (
        (stream_probe._exact_sums, pilot, None, stream_probe._exact_numbers(C), ()),
        (stream_probe._sketched_sums, pilot, signs, stream_probe._sketched_numbers, (signs,)),
        (stream_probe._projected_sums, _axes(2), whole(1),
         stream_probe._projected_numbers("pca4"), (whole(M), array())),
    )  # fmt: skip
    for one, fixed, shared, numbers, more in passes:
        block = (j, fixed, x_SRD, weight_R, y_RM, shared)
        sums = jax.eval_shape(lambda *a, one=one: totals._zeros(one, mesh, *a), *block)
        found["_zeros"].append(_of(totals._zeros, one, mesh, *block))
        found["_add"].append(_of(totals._add, one, mesh, sums, *block))
        slot = sums[0] if one is stream_probe._projected_sums else (sums[0], fixed)
        found["_map"].append(_of(totals._map, numbers, mesh, slot, more))
    return found


def _epochs(tuning: Tuning) -> Iterator[Case]:
    """A mapped epoch: batches split by rows over devices, and members split, in waves."""
    program = step.Program(C, (6, 5), M, (True, False), 4, 3, 0.0)
    for rows_split, size in ((2, None), (1, 2)):
        state = jax.eval_shape(functools.partial(loop._start, program), array(K, dtype=jnp.uint32))
        setting = step.Setting(array(K), array(K), array(K, 2), whole(K))
        data = step.Data(array(1, N, C), array(N, M), array(1, R, C), array(R, M))
        waves = () if size is None else (step.Waves(whole(K, size), whole(K), whole()),)
        mapped = jax.tree.map(
            lambda x: array(2, *x.shape, dtype=x.dtype), (state, setting, data, *waves)
        )
        epoch = loop._compiled_epoch(
            program, rows_split, tuning.one_by_one, tuple(jax.devices()[:2])
        )
        yield _of(jax.jit(epoch), *mapped)


def encoder_case(name: str, dtype: Any, tuning: Tuning, n_tokens: int = 16) -> Case:
    """The prefill of a golden model; without cuDNN, which only a GPU can be asked for."""
    path = GOLDEN / name / "config.json"
    config = read_config(json.loads(path.read_text()), str(path))
    exact = dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    tuning = dataclasses.replace(tuning, cudnn=False)
    graphdef, params = loading.abstract_model(config, dtype, precision, tuning)
    batch = (whole(2, n_tokens), whole(2), whole(2, 2))
    layers = tuple(range(config.n_states))
    return _of(capture, Graph(graphdef), params, *batch, selection=Selection(layers, POOLINGS))


def _prefix_cases(tuning: Tuning) -> list[Case]:
    """Reading a prefix, and the prefill behind it."""
    graph, params, *batch = (behind := encoder_case("qwen3", jnp.float32, tuning)).args
    layers = behind.options["selection"].layers
    read = _of(read_prefix, graph, params, whole(2, 5), layers=layers)
    prefix = jax.eval_shape(
        functools.partial(read_prefix, graph, layers=layers), params, whole(2, 5)
    )
    return [read, _of(capture, graph, params, *batch, **behind.options, prefix=prefix)]


def _few_tokens_case(tuning: Tuning) -> Case:
    """The prefill that takes the weights of each block by themselves."""
    graph, params, *batch = (stacked := encoder_case("qwen3", jnp.float32, tuning)).args
    (stack,) = nnx.to_pure_dict(params["blocks"]).values()
    block = jax.tree.map(lambda w: array(*w.shape[1:], dtype=w.dtype), stack)
    block_buffer = (block,) * (len(stacked.options["selection"].layers) - 1)
    return _of(capture, graph, params, *batch, **stacked.options, blocks=block_buffer)


def _probe_cases() -> Table:
    x_ND, y_NM, weight_BN = array(N, D), array(N, M), array(5, N)
    score_NQ, fold_N = array(N, Q), whole(N)
    classes = (jax.eval_shape(projected._finish, _projected(L, P)), whole(M), array())
    pmapped = cross_validation._compiled((2, C), tuple(jax.devices()[:2]), 2.0**-12)
    sites = (array(2, 1, F, R, D), array(2, F, R, M), array(2, F, R))
    return {
        "stats/auc_replicates.py:_auc_replicates": lambda: [
            _of(auc_replicates._auc_replicates, score_NQ, score_NQ, fold_N, whole(F, R),
                array(F, R), weight_BN)
        ],
        "stats/auc_replicates.py:_within_auc_replicates": lambda: [
            _of(auc_replicates._within_auc_replicates, score_NQ, score_NQ, fold_N, fold_N,
                weight_BN, n_folds=F, n_datasets=2)
        ],
        "stats/bootstrap.py:_poisson": lambda: [
            _of(bootstrap._poisson, array(N, 2, dtype=jnp.uint32), _SEED, draws=5)
        ],
        "sweeps/cross_validation.py:_compiled": lambda: [_of(jax.jit(pmapped), *sites)],
        "sweeps/controls.py:_train_on": lambda: [
            _of(controls._train_on, x_ND, y_NM, array(N), width=C, least=2.0**-12)
        ],
        "sweeps/evaluator.py:_standardise": lambda: [_of(evaluator._standardise, x_ND, 2.0**-12)],
        "stats/fisher_replicates.py:_fisher_replicates": lambda: [
            _of(fisher_replicates._fisher_replicates, x_ND, y_NM, whole(1), whole(M), weight_BN)
        ],
        "stats/fisher_replicates.py:_fisher_shuffled": lambda: [
            _of(
                fisher_replicates._fisher_shuffled,
                x_ND,
                y_NM,
                whole(1),
                whole(M),
                _SEED,
                n_shuffles=2,
            )
        ],
        "probes/probe.py:_quick_pass": lambda: [_of(probe._quick_pass, _moments(L, P)[1])],
        "probes/probe.py:_first_pass": lambda: [
            _of(probe._first_pass, _moments(L, P)[1], n_components=C)
        ],
        "probes/probe.py:_second_pass": lambda: [_of(probe._second_pass, *classes, space="pca4")],
        "probes/streaming/sketched.py:draw_signs": lambda: [_of(sketched.draw_signs, D, K, _SEED)],
    }  # fmt: skip


def _feature_cases() -> Table:
    _, weight_R, y_RM = _BLOCK
    mesh = make_mesh("data:2")
    site_DC = (array(2, D), array(2, D), array(2, D, K))
    basis_EK = array(2 * D, K)
    sketched_sums = (array(), site_DC[2], site_DC[0], array(K))
    sums, axes = _projected(L, P), _axes(L, P)
    wide = _moments(1, 1, width=2 * D)[1]
    return {
        "probes/streaming/captured.py:_empty": lambda: [
            _inside(lambda: captured._empty((4, R, D), mesh))
        ],
        "probes/streaming/captured.py:_place": lambda: [
            _of(captured._place, array(4, R, D), array(L, P, 3, D), whole(3), mesh=mesh)
        ],
        "probes/streaming/captured.py:_finite": lambda: [_of(captured._finite, array(4, R, D))],
        "features/part.py:apply_parts": lambda: [
            _of(
                part.apply_parts,
                array(L, P, n, D),
                (whole(2, 2), whole(1, 2)),
                (_axes(2), _axes(1)),
            )
            for n in (R, 4 * R)
        ],
        "features/fit.py:_fisher_of_sites": lambda: [_of(fit._fisher_of_sites, _moments(L, P)[1])],
        "features/fit.py:_ridge_of_sites": lambda: [_of(fit._ridge_of_sites, _moments(L, P)[1])],
        "features/moments.py:begin": lambda: [
            _of(moments.begin, *_BLOCK, gram=gram) for gram in (0, 1)
        ],
        "features/moments.py:update": lambda: [
            _of(moments.update, _moments(L, P, gram=gram)[0], *_BLOCK) for gram in (False, True)
        ],
        "features/moments.py:finish": lambda: [_of(moments.finish, _moments(L, P)[0])],
        "features/pca.py:_solve": lambda: [_of(pca._solve, wide, n_sites=2, width=C)],
        "features/pca.py:_clean": lambda: [
            _of(pca._clean, site_DC[0], basis_EK, array(K), array(K))
        ],
        "features/pca.py:_average": lambda: [
            _of(pca._average, array(L, P, R, D), array(L, P, D), array(L, P, D))
        ],
        "features/pca.py:_by_site": lambda: [_of(pca._by_site, wide, n_sites=2)],
        "features/pca.py:_in_states_units": lambda: [
            _of(pca._in_states_units, wide, array(2, D), array(2, D))
        ],
        "features/projected.py:_update": lambda: [
            _of(projected._update, (sums, sums), *_BLOCK, axes, whole(1))
        ],
        "features/projected.py:_finish": lambda: [_of(projected._finish, sums)],
        "features/sketch.py:_draw": lambda: [_of(sketch._draw, site_DC[0], n_sketch=K)],
        "features/sketch.py:_add_product": lambda: [
            _of(sketch._add_product, (sketched_sums,) * 2, array(1, 2, R, D), weight_R, *site_DC)
        ],
        "features/sketch.py:_centred": lambda: [_of(sketch._centred, *sketched_sums)],
        "features/sketch.py:_filter": lambda: [_of(sketch._filter, *[basis_EK] * 3, whole())],
        "features/sketch.py:_rayleigh_ritz": lambda: [_of(sketch._rayleigh_ritz, *[basis_EK] * 2)],
    }


def _kernel_cases() -> Table:
    x_RC, x_NC, y_NM, square_NN = array(R, C), array(N, C), array(N, M), array(N, N)
    mask_N, width = array(N, dtype=jnp.bool_), array()
    loading = (y_NM, array(M))
    return {
        "trunk/kernel.py:_distances": lambda: [_of(kernel._distances, x_RC, x_NC)],
        "trunk/kernel.py:_gaussian": lambda: [_of(kernel._gaussian, x_RC, x_NC, width)],
        "trunk/kernel.py:_solve": lambda: [_of(kernel._solve, square_NN, mask_N, width, y_NM)],
        "trunk/kernel.py:_apply": lambda: [_of(kernel._apply, array(R, N), *loading)],
        "trunk/kernel.py:predict_rows": lambda: [
            _of(kernel.predict_rows, x_RC, x_NC, *loading, width)
        ],
    }


def cases(tuning: Tuning) -> Table:
    """The table, but for the encoder's prefill, whose models have a test of their own."""
    x_NC, y_NM, seeds_DK = array(N, C), array(N, M), array(2, K, dtype=jnp.uint32)
    program = step.Program(C, (6, 5), M, (True, False), 4, 3, 0.0)
    state = jax.eval_shape(functools.partial(loop._start, program), array(K, dtype=jnp.uint32))
    mesh, drawn = make_mesh("data:2"), np.random.default_rng(0)
    y = (drawn.random((N, M)) < 0.5).astype(np.float32)
    x = drawn.random((N, C), np.float32)
    return {
        "store/shards.py:_compiled": lambda: [
            _of(shards._compiled(shards._largest), array(L, P, R, D)),
            _of(shards._compiled(shards._narrowed), array(L, P, R, D), array(L, P)),
            _of(
                shards._compiled(shards._widened), array(L, P, R, D, dtype=jnp.float16), array(L, P)
            ),
        ],
        "encoder/extraction/block_buffer.py:_zeros": lambda: [
            _of(block_buffer._zeros, (L, P, R, D), sharding=replicated(mesh))
        ],
        "encoder/extraction/block_buffer.py:_put": lambda: [
            _of(
                block_buffer._put,
                array(L, P, R, D),
                array(L, P, 2, D),
                whole(),
                sharding=replicated(mesh),
            )
        ],
        "encoder/extraction/block_buffer.py:_narrow": lambda: [
            _of(block_buffer._narrow, array(L, P, R, D), n_rows=R - 1)
        ],
        "encoder/extraction/block_buffer.py:_narrow_to_int8": lambda: [
            _of(block_buffer._narrow_to_int8, array(L, P, R, D), n_rows=R - 1)
        ],
        "encoder/capture.py:read_prefix": lambda: _prefix_cases(tuning),
        "encoder/capture.py:_prefill.one_block": lambda: [_few_tokens_case(tuning)],
        "encoder/models/products.py:quantised": lambda: [
            _of(products.quantised, array(R, D, dtype=jnp.bfloat16))
        ],
        "encoder/weights/mxfp4.py:unpack": lambda: [
            _of(
                mxfp4.unpack,
                array(R, 2, 16, dtype=jnp.uint8),
                array(R, 2, dtype=jnp.uint8),
                dtype=jnp.dtype(jnp.bfloat16),
            )
        ],
        "encoder/weights/loading.py:_empty": lambda: [
            _inside(
                lambda: loading._empty(
                    {("a",): array(3, D, D, dtype=jnp.bfloat16)}, {("a",): replicated(mesh)}
                )
            )
        ],
        "encoder/weights/loading.py:_write": lambda: [
            _of(
                loading._write,
                array(3, D, D, dtype=jnp.bfloat16),
                array(1, 2, D),
                whole(3),
                sharding=sharding,
            )
            for sharding in (replicated(mesh), _by_columns())
        ],
        "encoder/weights/loading.py:_draw": lambda: [
            _of(
                loading._draw,
                array(3, D, D),
                jax.eval_shape(lambda: jax.random.key(0)),
                sharding=_by_columns(),
            )
        ],
        **_feature_cases(),
        **{
            f"probes/streaming/totals.py:{name}": lambda name=name: _site_cases()[name]
            for name in ("_make", "_zeros", "_add", "_map")
        },
        **_probe_cases(),
        **_kernel_cases(),
        "trunk/loop.py:_compiled_start": lambda: [
            _of(jax.jit(loop._compiled_start(program, tuple(jax.devices()[:2]))), seeds_DK)
        ],
        "trunk/loop.py:_compiled_epoch": lambda: list(_epochs(tuning)),
        "export/program.py:exported": lambda: [
            _of(
                jax.jit(program_of(by_hand.router(kernel=True, trust=True).predictor)),
                array(R, 2, 2, 12),
            )
        ],
        "trunk/net.py:_score": lambda: [
            _of(net._score, (C, (6, 5), M), net.by_name(state.params), rows_RC)
            for rows_RC in (x_NC, array(2 * net._FEW_ROWS, C))
        ],
        "studies/embedding_baselines.py:_nearest": lambda: [
            _of(embedding_baselines._nearest, x_NC, array(R, C), k=2)
        ],
        "studies/embedding_baselines.py:_logistic": lambda: [
            _inside(lambda: embedding_baselines._logistic(x, y, x, 1.0))
        ],
        "studies/embedding_baselines.py:_factorised": lambda: [
            _of(embedding_baselines._factorised, x_NC, y_NM, x_NC, y_NM, _SEED, rank=2)
        ],
        "evaluation/calibration.py:_mean_error": lambda: [
            _of(calibration._mean_error, array(N), array(N, 3), draws=20)
        ],
    }
