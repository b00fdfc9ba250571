"""The report's pictures of training, AUC and shares; each function returns a matplotlib Figure."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from routerjax.report.shown import shown_targets
from routerjax.report.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PERCENT,
    STYLES,
    WIDTH,
    clean,
    legend,
    short_name,
)
from routerjax.report.text import policy_text

# That can be told apart in one picture: as many as there are colours, of which the last is grey.
_LINES = 8


def training_curves(history: dict[str, Any]) -> Figure:
    """Training and validation loss of each ensemble member; a dot at the epoch it was kept from.

    Args:
      history: `train_loss_EK` and `val_loss_EK` [E, K], NaN after a member stopped; `best_epoch_K`
        [K] rows of those arrays, counted from 0; `kept`, the indices of the members in use.
    """
    train_EK = np.asarray(history["train_loss_EK"], np.float64)
    val_EK = np.asarray(history["val_loss_EK"], np.float64)
    best_K = np.asarray(history["best_epoch_K"], np.int64)
    kept = [int(k) for k in history["kept"]]
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes_2 = figure.subplots(1, 2, sharey=True)
    epoch_E = np.arange(1, len(val_EK) + 1)
    dropped = [k for k in range(val_EK.shape[1]) if k not in kept]
    for axes, loss_EK, title in zip(
        axes_2, (train_EK, val_EK), ("training rows (with dropout)", "validation rows"), strict=True
    ):
        for k in (*dropped, *kept):
            colour, dash = STYLES[kept.index(k) % len(STYLES)] if k in kept else (GREY, "-")
            style = {"linewidth": 1.4} if k in kept else {"linewidth": 0.8, "alpha": 0.45}
            label = f"member {k}" if k in kept else None
            # A single epoch makes no line: draw a point.
            marker = "." if len(epoch_E) == 1 else None
            axes.plot(epoch_E, loss_EK[:, k], color=colour, linestyle=dash, label=label,
                      marker=marker, **style)  # fmt: skip
            if k in kept:
                axes.plot(best_K[k] + 1, loss_EK[best_K[k], k], "o", color=colour, markersize=5)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        clean(axes)
    if dropped:
        axes_2[1].plot([], [], color=GREY, linewidth=0.8, alpha=0.6, label="not kept")
    axes_2[0].set_ylabel("binary cross-entropy, nats", fontsize=9)
    legend(figure, axes_2[1], title="kept (dot: its epoch)")
    return figure


def auc_bars(metrics: dict[str, Any]) -> Figure:
    """AUC of each target with its AUC within datasets, as bars from chance.

    Args:
      metrics: What `evaluate_predictions` returned; `auc`, `within_dataset_auc` and `targets`.
    """
    series = [("all pairs of queries", metrics["auc"], BLUE)]
    if metrics["within_dataset_auc"] is not None:
        series.append(("pairs within a dataset", metrics["within_dataset_auc"], ORANGE))
    shown = shown_targets(metrics)
    figure, axes = _bars(shown, series, base=0.5, text="{:.3f}")
    values = [of[t] for _, of, _ in series for t in shown if of[t] is not None]
    low, high = min([0.5, *values]), max([0.75, *values])
    margin = 0.13 * (high - low)
    axes.set_xlim(low - (margin if low < 0.5 else 0.02 * (high - low)), high + margin)
    axes.axvline(0.5, color="black", linewidth=1)
    axes.set_xlabel("ROC-AUC of predicted against observed correctness (0.5 = chance)", fontsize=9)
    return figure


def reliability_curves(metrics: dict[str, Any]) -> Figure:
    """Observed rate against mean P(correct) of each bin and target, before and after calibration.

    Of many targets some have a colour and their name (`shown_targets`), the others are thin and
    grey.

    Args:
      metrics: What `evaluate_predictions` returned; `calibration` and `targets`. Where it
        has no probabilities from before calibration, there is one panel.
    """
    sides = [(name, metrics["calibration"][name]) for name in ("before", "after")]
    shown = [(name, side) for name, side in sides if side is not None]
    targets = metrics["targets"]
    named = targets if len(targets) <= _LINES else shown_targets(metrics, _LINES - 1)
    figure = Figure(figsize=(WIDTH, 4.1), layout="constrained")
    axes_S = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (name, side) in zip(axes_S, shown, strict=True):
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        for target in targets:
            p_B, rate_B, _ = np.array(side["reliability"][target], np.float64).reshape(-1, 3).T
            if target not in named:
                axes.plot(p_B, rate_B, color=GREY, linewidth=0.6, alpha=0.35, zorder=1)
                continue
            colour, dash = STYLES[named.index(target)]
            axes.plot(p_B, rate_B, color=colour, linestyle=dash, linewidth=1.2, marker="o",
                      markersize=2.5, label=short_name(target))  # fmt: skip
        title = f"{name} calibration"
        if side["mean_ece"] is not None:
            # On a line of its own: two panels are too narrow for both.
            title += f"\nECE {side['mean_ece']:.3f} (chance alone {side['mean_ece_floor']:.3f})"
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("mean P(correct) of a bin", fontsize=9)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        clean(axes)
    axes_S[0].set_ylabel("share of right answers in it", fontsize=9)
    which = None
    if len(named) < len(targets):
        which = "best single, dearest,\nmost often asked"
        label = f"{len(targets) - len(named)} others"
        axes_S[0].plot([], [], color=GREY, linewidth=0.6, alpha=0.6, label=label)
    legend(figure, axes_S[0], which)
    return figure


def routed_share(metrics: dict[str, Any]) -> Figure:
    """Share of queries that the router gives each target, beside the oracle's.

    Args:
      metrics: What `evaluate_predictions` returned; `routed_share`, `oracle_share`, `targets`.
    """
    series = [(f"router ({policy_text(metrics['policy'])})", metrics["routed_share"], BLUE)]
    if metrics["oracle_share"] is not None:
        series.append(("oracle (cheapest right one)", metrics["oracle_share"], GREEN))
    figure, axes = _bars(shown_targets(metrics), series, base=0.0, text="{:.1%}")
    top = max(v for _, value_of, _ in series for v in value_of.values())
    axes.set_xlim(0, 1.13 * top)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("share of queries", fontsize=9)
    return figure


def _bars(
    targets: list[str], series: list[tuple[str, dict[str, Any], str]], base: float, text: str
) -> tuple[Figure, Any]:
    """Horizontal bars from `base`, a group a target, the first target on top, numbers at the tips.

    A value of None has no bar and an en dash for a number.
    """
    thickness = 0.8 / len(series)
    figure = Figure(
        figsize=(WIDTH, 0.95 + (0.145 * len(series) + 0.1) * len(targets)), layout="constrained"
    )
    axes = figure.add_subplot()
    for j, (label, value, colour) in enumerate(series):
        y_M = np.arange(len(targets)) + (j - (len(series) - 1) / 2) * thickness
        known_M = [base if value[t] is None else value[t] for t in targets]
        axes.barh(y_M, np.array(known_M) - base, 0.92 * thickness, left=base, color=colour,
                  label=label)  # fmt: skip
        for y, target, number in zip(y_M, targets, known_M, strict=True):
            below = number < base
            axes.annotate(
                "–" if value[target] is None else text.format(number),
                (number, y), xytext=(-3 if below else 3, 0), textcoords="offset points",
                ha="right" if below else "left", va="center_baseline", fontsize=7.5,
            )  # fmt: skip
    axes.set_yticks(range(len(targets)), [short_name(target) for target in targets], fontsize=8)
    axes.set_ylim(len(targets) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    clean(axes)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(base == 0)
    axes.set_axisbelow(True)
    if len(series) > 1:
        legend(figure, axes, title=None, loc="outside upper left", ncols=len(series))
    return figure, axes
