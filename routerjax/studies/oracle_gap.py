"""A router against the best possible one, on simulated queries: gaps in accuracy and in cost.

Simulated data have the true P(correct), which gives the accuracy of the best possible router, and
the length of every answer, which gives the spending of a policy that knows all costs beforehand.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import numbered
from routerjax.features.feature_map import Stores
from routerjax.features.recipe import Recipe
from routerjax.routing.constrained import Quality, Unreachable
from routerjax.routing.costs import CostModel
from routerjax.routing.fit import fit_router
from routerjax.routing.judged import judge
from routerjax.routing.policy_rows import take
from routerjax.stats.bootstrap import reverse_percentile, value_and_draws
from routerjax.studies.contestants import BASELINES
from routerjax.trunk.config import TrunkConfig

# Accuracies at which spending is compared, as shares of the way from always choosing the cheapest
# target to argmax.
PLACES = (0.5, 0.8, 0.95)


def oracle_gap(
    stores: Stores,
    data: RoutingDataset,
    recipe: Recipe | None = None,
    config: TrunkConfig | None = None,
    *,
    test_fraction: float = 0.3,
    draws: int = 1000,
    seed: int = 0,
    checkpoints: Any = None,
) -> dict[str, Any]:
    """How near a router comes to the best possible one, and what its cost head saves.

    Spending is that of policies fitted on half of the test rows, counted on the other half.

    Args:
      stores: The hidden states.
      data: Simulated rows.
      recipe: By default all layers, mean-pooled, PCA 200.
      config: The ensemble; by default as published.
      test_fraction: Share of rows held out to judge by.
      draws: Of the bootstrap over groups.
      seed: Of the split and of the draws.
      checkpoints: As in `fit_router`.

    Returns:
      JSON values. `headroom` by contestant ("router", "dataset" or the name alone, "logistic" on
      the final state, "best possible"): `captured`, and `share` of the best possible router's with
      "value", "low", "high". `spending` by place: the accuracy `wanted`, and by pricing ("head",
      "median", "true") USD `spent` a query, the `accuracy` it came with, and `ratio` to the
      head's spending with its interval; None where the rows that fit the policies do not reach it.

    Raises:
      ValueError: The data are not simulated ones.
      resume.Stopped: SIGTERM came, with checkpoints; the next call goes on from there.
    """
    if data.p_NM is None or data.output_tokens_NM is None or data.prices_M2 is None:
        raise ValueError("data: expected simulated rows, with true P(correct), lengths and prices")
    config = TrunkConfig() if config is None else config
    test, train = data.split(test_fraction, seed)
    assert test.p_NM is not None
    # No trust: the rows judged by are of the training's datasets.
    router = fit_router(stores, train, recipe, config, checkpoints=checkpoints, trust=False)
    judged, x_NC = judge(router, stores, test)
    assert judged.query_tokens_N is not None
    p_NM = router.predict(x_NC)
    allowed_NM = np.ones(p_NM.shape, bool) if judged.allowed_NM is None else judged.allowed_NM
    contestants = {
        "router": p_NM,
        "dataset": BASELINES["dataset"].predict(stores, train, test, config),
        "logistic": BASELINES["logistic"].predict(stores, train, test, config),
        "best possible": test.p_NM,
    }
    weight_BN = value_and_draws(test.groups, draws, seed)
    costs = {
        "head": judged.expected_NM,
        "median": CostModel.fit(train).expected(judged.query_tokens_N),
        "true": judged.paid_NM,
    }
    return {
        "n_train": len(train),
        "n_test": len(test),
        "length_sources": list(router.costs.sources),
        "headroom": _headroom(
            {name: np.where(allowed_NM, each_NM, -np.inf) for name, each_NM in contestants.items()},
            test,
            router.best_single,
            weight_BN,
        ),  # fmt: skip
        "spending": _spending(p_NM, allowed_NM, test, costs, weight_BN),
    }


def _headroom(
    contestants: Mapping[str, np.ndarray], test: RoutingDataset, single: int, weight_BN: np.ndarray
) -> dict[str, Any]:
    correct_NM = np.asarray(test.correct_NM, np.float64)
    single_N, oracle_N = correct_NM[:, single], correct_NM.max(axis=1)
    headroom_B = weight_BN @ (oracle_N - single_N)
    # The gain over the best single target, with each outcome replaced by its true P(correct): the
    # chance in single outcomes would only add noise.
    p_true_NM = np.asarray(test.p_NM, np.float64)
    gain_B = {
        name: weight_BN @ (take(p_true_NM, p_NM.argmax(axis=1)) - p_true_NM[:, single])
        for name, p_NM in contestants.items()
    }
    result = {}
    for name, p_NM in contestants.items():
        captured = weight_BN[0] @ (take(correct_NM, p_NM.argmax(axis=1)) - single_N) / headroom_B[0]
        result[name] = {
            "captured": float(captured),
            "share": _estimate(gain_B[name] / gain_B["best possible"]),
        }
    return result


def _spending(
    p_NM: np.ndarray,
    allowed_NM: np.ndarray,
    test: RoutingDataset,
    costs: Mapping[str, np.ndarray | None],
    weight_BN: np.ndarray,
) -> list[dict[str, Any]]:
    paid_NM, correct_NM = costs["true"], np.asarray(test.correct_NM, np.float64)
    assert paid_NM is not None
    _, half_N = numbered(test.groups)
    fit_N = half_N % 2 == 0
    cheap = correct_NM[:, paid_NM.mean(axis=0).argmin()].mean()
    top = take(correct_NM, np.where(allowed_NM, p_NM, -np.inf).argmax(axis=1)).mean()
    known = {name: cost_NM for name, cost_NM in costs.items() if cost_NM is not None}
    keys = [query for query, fit in zip(test.queries, fit_N, strict=True) if not fit]
    table = []
    for place in PLACES:
        wanted = float(cheap + place * (top - cheap))
        row: dict[str, Any] = {"place": place, "wanted": wanted}
        try:
            fitted = {
                name: Quality(wanted).fit(
                    *(a_NM[fit_N] for a_NM in (p_NM, cost_NM, correct_NM, paid_NM, allowed_NM))
                )
                for name, cost_NM in known.items()
            }
        except Unreachable:  # All rows together reach the accuracy, half of them do not.
            table.append(row | dict.fromkeys(known))
            continue
        spent_B, accuracy = {}, {}
        for name, cost_NM in known.items():
            choice_n = fitted[name].choose(p_NM[~fit_N], cost_NM[~fit_N], allowed_NM[~fit_N], keys)
            weight_Bn = weight_BN[:, ~fit_N].astype(np.float64)
            spent_B[name] = (weight_Bn @ take(paid_NM[~fit_N], choice_n)) / weight_Bn.sum(axis=1)
            accuracy[name] = float(take(correct_NM[~fit_N], choice_n).mean())
        table.append(
            row
            | {
                name: {
                    "spent": float(spent_B[name][0]),
                    "accuracy": accuracy[name],
                    "ratio": _estimate(spent_B[name] / spent_B["head"]),
                }
                for name in known
            }
        )
    return table


def _estimate(value_B: np.ndarray) -> dict[str, float]:
    low, high = reverse_percentile(value_B[0], value_B[1:])
    return {"value": float(value_B[0]), "low": float(low), "high": float(high)}


def oracle_gap_lines(result: dict[str, Any]) -> list[str]:
    """The result of `oracle_gap` as text."""
    lines = [
        f"trained on {result['n_train']:,} rows, judged on {result['n_test']:,}; [95% interval]",
        "headroom captured, and share of the best possible router's",
    ]
    for name, row in result["headroom"].items():
        share = row["share"]
        lines.append(
            f"  {name:14} {row['captured']:7.1%}   {share['value']:6.1%} "
            f"[{share['low']:.1%}, {share['high']:.1%}]"
        )
    lines.append("USD per 1,000 queries at equal accuracy, and relative to the cost head's")
    for row in result["spending"]:
        lines.append(f"  accuracy {row['wanted']:.4f}")
        if row["head"] is None:
            lines.append("    not reached on the rows that fit the policies")
            continue
        for name in ("head", "median", "true"):
            part, ratio = row[name], row[name]["ratio"]
            lines.append(
                f"    {name:7} {1000 * part['spent']:.4f} at {part['accuracy']:.4f}   "
                f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
            )
    return lines
