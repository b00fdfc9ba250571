"""Routers made by hand: every step that an export must carry, without a training. Not a test."""

import numpy as np

from routerjax.encoder.selection import Selection
from routerjax.features.feature_map import FeatureMap
from routerjax.features.part import Part
from routerjax.features.recipe import Recipe
from routerjax.routing.costs import Bills, CostModel
from routerjax.routing.lengths import LengthHead
from routerjax.routing.limits import Limits
from routerjax.routing.policies import Tolerance
from routerjax.routing.predictor import Predictor
from routerjax.routing.router import Router, Training
from routerjax.trunk.calibrate import Calibration, Curve
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.kernel import Kernel
from routerjax.trunk.net import Trunk
from routerjax.trunk.trust import Metric, Trust

TARGETS = ("cheap", "middle", "dear", "new")
M, D = len(TARGETS), 12
CURVES = (
    Curve("none"),
    Curve("temperature", 1.7),
    Curve("platt", 0.6, -0.4),
    Curve("isotonic", knots=((0.3, 0.45, 0.6), (0.1, 0.5, 0.8))),
)
FIXED = {"revision": None, "max_tokens": 2048, "chat_template_kwargs": None}


def part(rng, sites, encoder=0, width=5, hidden=D):
    """Standardise + PCA of random states, about as large as fitted ones are."""
    shape = (len(sites), hidden)
    components_EC = np.linalg.qr(rng.normal(size=(len(sites) * hidden, width)))[0]
    return Part(
        mean_SD=rng.normal(size=shape).astype(np.float32),
        scale_SD=rng.uniform(0.5, 2, size=shape).astype(np.float32),
        components_SDC=components_EC.reshape(*shape, width).astype(np.float32),
        eigenvalues_C=np.ones(width, np.float32),
        total_variance=float(width), residual=0.0, encoder=encoder, sites=tuple(sites),
    )  # fmt: skip


def trunk(rng, n_features, hidden=(7, 6), n_members=2):
    widths, params = (n_features, *hidden, M), {}
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        params[f"{i}.kernel"] = (rng.normal(size=(n_members, a, b)) / a**0.5).astype(np.float32)
        params[f"{i}.bias"] = rng.normal(size=(n_members, b)).astype(np.float32)
    return Trunk.from_params(params)


def costs(rng, n_features, plain=False):
    if plain:
        return CostModel(None, np.full(M, 256.0), np.zeros(M, bool))
    prices_M2 = np.array([[0.1, 0.2], [0.5, 1.0], [3.0, 9.0], [np.nan, np.nan]])
    head = LengthHead(
        rng.normal(size=(n_features, M)).astype(np.float32), np.full(M, 4.0, np.float32),
        np.full(M, 1.1, np.float32), np.tile(np.float32([2.0, 6.0]), (M, 1)),
        np.array([False, True, True, False]), np.zeros((M, 2), np.float32),
    )  # fmt: skip
    bills = Bills(
        np.array([0.0, 40.0, -90.0, 0.0]), np.array([0.0, 0.3, 0.5, 0.0]),
        np.array([np.nan, 0.1, np.nan, np.nan]), np.array([np.nan, np.nan, np.nan, 0.001]),
    )  # fmt: skip
    return CostModel(prices_M2, np.full(M, 300.0), np.ones(M, bool), head, bills)


def by_hand_trust(rng, n_features):
    """Three datasets, and trust from 0.9 to 0.1 over the distances that random features have."""
    axes_2CC = 0.3 * rng.normal(size=(2, n_features, n_features))
    centres_GC, middle_C = rng.normal(size=(3, n_features)), rng.normal(size=n_features)
    parts = (axes_2CC[0], centres_GC, middle_C, axes_2CC[1])
    return Trust(
        rng.random(M).astype(np.float32), Metric(*(part.astype(np.float32) for part in parts)),
        # The last target was added later.
        ((-1.0, 0.5, 2.0), (0.9, 0.6, 0.1)), M - 1, 0.9, 0.1,
    )  # fmt: skip


def router(
    parts=None, recipe=None, policy=None, curves=CURVES, kernel=False, hidden=(7, 6),
    n_members=2, plain_costs=False, limits=False, encoders=(), seed=0, trust=False,
):  # fmt: skip
    """A Router with random numbers."""
    rng = np.random.default_rng(seed)
    parts = parts or [part(rng, Selection((1, 3), ("last", "mean")).sites)]
    n_features = sum(each.width for each in parts)
    fitted = Kernel(
        rng.normal(size=(9, n_features)).astype(np.float32),
        # The last target was added later.
        rng.normal(size=(9, M - 1)).astype(np.float32) / 5,
        np.array([0.4, 0.5, 0.6, 0.5], np.float32), np.array([0.3, 0.3, 0.3, 0], np.float32),
        width=20.0, ridge=1.0,
    )  # fmt: skip
    predictor = Predictor(
        FeatureMap(recipe or Recipe.layers([1, 3], ("last", "mean"), 5), tuple(parts)),
        trunk(rng, n_features, hidden, n_members),
        fitted if kernel else None,
        Calibration(tuple(curves)),
        by_hand_trust(rng, n_features) if trust else None,
    )
    n_encoders = predictor.features.n_encoders
    identities = [{"encoder_id": f"org/encoder-{i}"} | FIXED for i in range(n_encoders)]
    windows_M = np.array([60.0, np.nan, 1e6, np.nan])
    return Router(
        predictor,
        TARGETS,
        costs(rng, n_features, plain_costs),
        policy or Tolerance(0.2),
        Training(TrunkConfig(), 0, {}),
        [encoder.identity for encoder in encoders] or identities,
        encoders,
        limits=Limits(windows_M, ((), ("text",), ("image",), ())) if limits else None,
    )


def states(router, n=40, seed=1):
    """A list of h_NLPD [n, L, P, D] that the router can read, one an encoder."""
    rng, features = np.random.default_rng(seed), router.features
    width = {part.encoder: part.mean_SD.shape[1] for part in features.parts}
    return [
        (2 * rng.normal(size=(n, *features.selection(e).shape, width[e]))).astype(np.float32)
        for e in range(features.n_encoders)
    ]
