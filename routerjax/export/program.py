"""stablehlo: features, trunk and calibration as one program of jax.export."""

import hashlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from routerjax.features.part import OnDevice, project_sites
from routerjax.routing.predictor import Predictor
from routerjax.routing.router import Router
from routerjax.runtime.files import Folder
from routerjax.stats.numerics import HIGHEST
from routerjax.trunk.calibrate import Calibration, Curve
from routerjax.trunk.kernel import predict_rows
from routerjax.trunk.net import score_members
from routerjax.trunk.trust import Trust

FORMAT_VERSION = 1
PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, DESCRIPTION = "program.jax_export", "program.json"
_TINY = 1e-7  # How near to 0 and 1 a probability may be before its logit is taken.


def stablehlo(router: Router, path: Any) -> None:
    """Writes a router's predictor as StableHLO: program.jax_export and program.json.

    The program takes pooled hidden states, an array [b, L, P, D] float32 of each encoder with a
    free number of rows b, and returns calibrated P(correct) [b, M] float32. It runs on CPU, CUDA
    and TPU wherever JAX and flatbuffers are installed, without routerjax:

        run = jax.jit(jax.export.deserialize(open("program.jax_export", "rb").read()).call)
        p_bM = run(h_bLPD)

    program.json says which layers and poolings of which encoder the axes L and P are, and the
    names of the targets; it is written last: a folder without it holds no export. Costs and policy
    are not part of the program (`rj.export.safetensors` has them in words).

    Args:
      router: The router.
      path: The folder, local or a URL; an export already there is replaced.

    Raises:
      ValueError: The package flatbuffers, in which jax.export writes, is not installed.
      OSError: The folder cannot be written.
    """
    predictor, folder = router.predictor, Folder(path)
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError(
            "stablehlo: jax.export writes and reads programs with the package flatbuffers, which "
            "is not installed: run `pip install flatbuffers`, here and where the program is loaded"
        )
    data = bytes(exported(predictor).serialize())
    folder.delete(DESCRIPTION)
    folder.write_bytes(PROGRAM, data)
    inputs = [
        {"encoder": identity, "layers": read.layers, "poolings": read.poolings,
         "shape": ["b", *read.shape, _width(predictor, e)], "dtype": "float32"}
        for e, identity in enumerate(router.encoder_identities)
        for read in [predictor.features.selection(e)]
    ]  # fmt: skip
    output = {"targets": router.targets, "shape": ["b", len(router.targets)], "dtype": "float32"}
    folder.write_json(DESCRIPTION, {
        "format": "routerjax program",
        "format_version": FORMAT_VERSION,
        "program": {"file": PROGRAM, "sha256": hashlib.sha256(data).hexdigest()},
        "platforms": PLATFORMS,
        "inputs": inputs,
        "output": output,
    })  # fmt: skip


def exported(predictor: Predictor) -> jax.export.Exported:
    """`probabilities` of a predictor for all platforms and any number of rows."""
    (rows,) = jax.export.symbolic_shape("b")
    features = predictor.features
    shapes = [
        (rows, *features.selection(e).shape, _width(predictor, e))
        for e in range(features.n_encoders)
    ]
    states = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.export.export(jax.jit(probabilities(predictor)), platforms=PLATFORMS)(*states)


def probabilities(predictor: Predictor) -> Callable[..., jax.Array]:
    """A function from pooled states, h_BLPD of each encoder, to calibrated p_BM.

    It is what `Predictor.predict` computes of `FeatureMap.apply`, as one traceable function in
    float32.
    """
    features, trunk, kernel = predictor.features, predictor.trunk, predictor.kernel
    on_device = [
        (part.encoder, OnDevice([part], features.selection(part.encoder)))
        for part in features.parts
    ]
    shape = trunk.n_features, trunk.hidden, trunk.n_targets

    def run(*states: jax.Array) -> jax.Array:
        x_BC = jnp.concatenate(
            [
                project_sites(states[e].transpose(1, 2, 0, 3), part.sites[0], part.axes[0])
                for e, part in on_device
            ],
            axis=1,
        )
        p_BM = score_members(shape, trunk.params, x_BC).mean(axis=0)
        if kernel is not None:
            # Targets that were added later have no column, and no share either.
            n_fitted = kernel.alpha_NM.shape[1]
            fitted = kernel.x_NC, kernel.alpha_NM, kernel.mean_M[:n_fitted], kernel.width
            own_BM = jnp.pad(predict_rows(x_BC, *fitted), ((0, 0), (0, p_BM.shape[1] - n_fitted)))
            p_BM = (1 - kernel.share_M[None]) * p_BM + kernel.share_M[None] * own_BM
        p_BM = _calibrated(predictor.calibration, p_BM)
        return p_BM if predictor.trust is None else _drawn(predictor.trust, x_BC, p_BM)

    return run


def _width(predictor: Predictor, encoder: int) -> int:
    """D of an encoder's states."""
    return next(
        part.mean_SD.shape[1] for part in predictor.features.parts if part.encoder == encoder
    )


def _calibrated(calibration: Calibration, p_BM: jax.Array) -> jax.Array:
    columns = [_of_curve(curve, p_BM[:, m]) for m, curve in enumerate(calibration.curves)]
    return jnp.stack(columns, axis=1)


def _drawn(trust: Trust, x_BC: jax.Array, p_BM: jax.Array) -> jax.Array:
    """`Trust.draw` by `Trust.of` in float32."""
    metric = trust.metric
    u_BC = jnp.einsum("bc,cd->bd", x_BC, metric.within_CC, precision=HIGHEST)
    v_BC = jnp.einsum("bc,cd->bd", x_BC - metric.middle_C[None], metric.all_CC, precision=HIGHEST)
    nearest_B = jnp.square(u_BC[:, None] - metric.centres_GC[None]).mean(axis=2).min(axis=1)
    d_B = nearest_B - jnp.square(v_BC).mean(axis=1)
    t_B = jnp.interp(d_B, *map(jnp.asarray, trust.knots))
    t_B1, score_BM = t_B[:, None], _logit(p_BM)
    level_B1 = score_BM[:, : trust.n_level].mean(axis=1, keepdims=True)
    usual_1M = jnp.asarray(trust.usual_M, jnp.float32)[None]
    drawn_BM = level_B1 + t_B1 * (score_BM - level_B1) + (1 - t_B1) * usual_1M
    return jnp.where(t_B1 == 1, p_BM, jax.nn.sigmoid(drawn_BM))


def _of_curve(curve: Curve, p_B: jax.Array) -> jax.Array:
    """`Curve.apply` in float32."""
    if curve.method == "none":
        return p_B
    if curve.method == "isotonic":
        return jnp.interp(p_B, *map(jnp.asarray, curve.knots))
    return jax.nn.sigmoid(curve.slope * _logit(p_B) + curve.shift)


def _logit(p: jax.Array) -> jax.Array:
    # 1 - p is exact near 1, where 1 - 1e-7 is not.
    return jnp.log(jnp.maximum(p, _TINY)) - jnp.log(jnp.maximum(1 - p, _TINY))
