"""drift: whether a router sees queries like those of its training, and judges them as well."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import betaincinv

from routerjax.data.dataset import RoutingDataset
from routerjax.features.feature_map import Stores
from routerjax.routing.fit import distance_of, outcomes
from routerjax.routing.router import Router
from routerjax.stats.intervals import ratio_interval, share_interval

# Fewer queries or outcomes are not judged.
_LEAST = 50


def drift(
    router: Router,
    logged: RoutingDataset,
    stores: Stores | None = None,
    training: tuple[Stores, RoutingDataset] | None = None,
    most_beyond: float = 0.02,
    most_gap: float = 0.05,
) -> dict[str, Any]:
    """Compares logged queries with those that a router was trained on.

    A query lies beyond where its distance (`FeatureMap.distances`) is larger than that of 99% of
    the training queries that no feature was fitted to. Training again is due where the share beyond
    is larger than `most_beyond` and than chance explains, or where the mean P(correct) of a target
    is off its mean outcome by more than `most_gap`; both by the near ends of 95% intervals, of at
    least 50 queries.

    Outcomes are mostly of the targets that were chosen, and a target is chosen where its P(correct)
    is large, by luck in part: a small positive gap is of that choice and not of time.

    Args:
      router: The router.
      logged: Queries and what outcomes are known, of some of its targets.
      stores: Hidden states of these queries; None to read their texts.
      training: The training's stores and rows; needed of a router that was saved without its
        training's distance.
      most_beyond: Share of queries, in [0, 1].
      most_gap: Difference of P(correct), in [0, 1].

    Returns:
      JSON values: `beyond`, `targets` and `reasons`, which is empty where nothing is due.

    Raises:
      ValueError: An outcome is of a target that the router has not, or its training's distance is
        not known.
    """
    unknown = [name for name in logged.targets if name not in router.targets]
    if unknown:
        raise ValueError(
            f"logged: there are outcomes of {', '.join(unknown)}, and the router knows "
            f"{', '.join(router.targets)}: leave them out (targets)"
        )
    known = _training_distance(router, training)
    x_NC = router.read_texts(logged.queries) if stores is None else router.read(stores, logged.ids)
    beyond_N = router.features.distances(x_NC) > known["p99"]
    low, high = share_interval(beyond_N, logged.groups)
    result: dict[str, Any] = {
        "n_queries": len(logged.ids),
        "beyond": {
            "share": float(beyond_N.mean()), "low": _finite(low), "high": _finite(high),
            "by_chance": _by_chance(known["n_queries"]), "distance": known,
        },
        "targets": _gaps(router, logged, router.predict(x_NC)),
    }  # fmt: skip
    return result | {"reasons": _reasons(result, most_beyond, most_gap)}


def drift_lines(result: Mapping[str, Any]) -> list[str]:
    """What `drift` found, in lines of text."""
    beyond, targets = result["beyond"], result["targets"]
    lines = [
        f"{result['n_queries']:,} queries: {beyond['share']:.1%} {_interval(beyond)} lie beyond "
        f"99% of {beyond['distance']['n_queries']:,} training queries (by chance at most "
        f"{beyond['by_chance']:.1%})"
    ]
    if targets:
        width = max(map(len, targets))
        lines.append(f"{'target':{width}}  outcomes  predicted  observed  difference")
        lines += [
            f"{name:{width}}  {t['n']:8,}  {t['predicted']:9.1%}  {t['observed']:8.1%}  "
            f"{t['gap']:+.1%} {_interval(t)}"
            for name, t in targets.items()
        ]
    counts = {"the queries": result["n_queries"]} | {name: t["n"] for name, t in targets.items()}
    few = [name for name, n in counts.items() if n < _LEAST]
    if few:
        lines.append(f"not judged, as there are fewer than {_LEAST}: {', '.join(few)}")
    reasons = [f"train again: {reason}" for reason in result["reasons"]]
    return [*lines, *(reasons or ["no reason to train again"])]


def _training_distance(
    router: Router, training: tuple[Stores, RoutingDataset] | None
) -> dict[str, Any]:
    """The 99th percentile of distance, as the router was saved with it or by its training rows."""
    if training is not None:
        stores, data = training
        config = router.trunk_config
        held, _ = data.split(config.val_fraction, config.split_seed)
        return distance_of(router.features, router.read(stores, held.ids))
    if "distance" not in router.training:
        raise ValueError(
            "training: the router was saved without its training's distance: give the store and "
            "the data of the training (--store, --data), or train it again"
        )
    known: dict[str, Any] = router.training["distance"]
    return known


def _by_chance(n: int) -> float:
    """The largest share (at 97.5%) that lies beyond the 99th percentile of n queries of its kind.

    The share beyond the r-th of n is Beta(n + 1 - r, r).
    """
    rank = 0.99 * (n - 1) + 1
    return float(betaincinv(n + 1 - rank, rank, 0.975))


def _gaps(router: Router, logged: RoutingDataset, p_NM: np.ndarray) -> dict[str, dict[str, Any]]:
    """Predicted against observed accuracy of each target that has outcomes."""
    gaps = {}
    for name, y_N in zip(logged.targets, outcomes(logged, router.trunk_config).T, strict=True):
        known_N = np.isfinite(y_N)
        p_n, y_n = p_NM[known_N, router.targets.index(name)], y_N[known_N]
        groups = [group for group, is_known in zip(logged.groups, known_N, strict=True) if is_known]
        if not groups:
            continue
        low, high = ratio_interval(p_n.astype(np.float64) - y_n, 1.0, groups)
        gaps[name] = {
            "n": len(groups), "predicted": float(p_n.mean(dtype=np.float64)),
            "observed": float(y_n.mean(dtype=np.float64)),
            "gap": float((p_n.astype(np.float64) - y_n).mean()),
            "low": _finite(low), "high": _finite(high),
        }  # fmt: skip
    return gaps


def _reasons(result: Mapping[str, Any], most_beyond: float, most_gap: float) -> list[str]:
    beyond, reasons = result["beyond"], []
    most = max(most_beyond, beyond["by_chance"])
    if result["n_queries"] >= _LEAST and (beyond["low"] or 0.0) > most:
        reasons.append(
            f"{beyond['share']:.1%} of the queries {_interval(beyond)} are unlike those of the "
            f"training, more than {most:.1%}"
        )
    for name, target in result["targets"].items():
        if target["n"] < _LEAST or target["low"] is None:
            continue
        if target["low"] > most_gap or target["high"] < -most_gap:
            reasons.append(
                f"{name} is right in {target['observed']:.1%}, not {target['predicted']:.1%}: "
                f"off by {abs(target['gap']):.1%} {_interval(target)}, more than {most_gap:.1%}"
            )
    return reasons


def _interval(value: Mapping[str, Any]) -> str:
    if value["low"] is None:
        return "[no interval]"
    return f"[{value['low']:.1%}, {value['high']:.1%}]"


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
