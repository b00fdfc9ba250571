"""The metrics in a few lines of text, for the end of a script's output."""

from typing import Any


def summary_lines(metrics: dict[str, Any]) -> list[str]:
    """The main numbers of `evaluate`, a line each; what does not exist comes with its reason.

    Args:
      metrics: What `evaluate` returned.
    """
    reasons = metrics["reasons"]
    lines = [f"{metrics['n_queries']:,} queries, {len(metrics['targets'])} targets"]
    if metrics["mean_auc"] is None:
        lines.append(f"mean AUC: none, {reasons['mean_auc']}")
    else:
        within = metrics["mean_within_dataset_auc"]
        lines.append(
            f"mean AUC {metrics['mean_auc']:.3f}"
            + (f", within datasets {within:.3f}" if within is not None else "")
        )
    if metrics["router_accuracy"] is None:
        return [*lines, f"accuracy: none, {reasons['router_accuracy']}"]
    lines.append(
        f"accuracy: router {metrics['router_accuracy']:.1%}, best single target "
        f"({metrics['best_single']}) {metrics['best_single_accuracy']:.1%}, oracle "
        f"{metrics['oracle_accuracy']:.1%}"
    )
    captured, possible = metrics["headroom_captured"], metrics["best_possible"]
    if captured is not None:
        line = f"headroom captured {captured:.1%}"
        if possible is not None and possible["headroom_captured"] is not None:
            line += (
                f"; a router that knew the true probabilities: {possible['headroom_captured']:.1%}"
            )
        lines.append(line)
    saving = metrics["cost_saving_vs_most_expensive"]
    if saving is None:
        return [*lines, f"saving: none, {reasons['cost_saving_vs_most_expensive']}"]
    return [
        *lines,
        f"saves {saving:.1%} against {metrics['most_expensive']}, at an accuracy of "
        f"{metrics['router_accuracy']:.1%} against its {metrics['most_expensive_accuracy']:.1%} "
        f"({metrics['cost_basis']} output tokens)",
    ]
