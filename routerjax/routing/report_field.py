"""The report's table of the metrics that other router benchmarks use."""

from typing import Any

from routerjax.routing.report_html import Html, join, number, table, tag

_NAMES = (
    ("aiq", "AIQ", "mean accuracy over costs from the cheapest to the dearest single target"),
    ("aiq_zero_router", "AIQ of the zero router", "the best mixtures of single targets"),
    ("aiq_minus_zero_router", "AIQ above the zero router", "what reading the query is worth"),
    ("avg_acc", "AvgAcc", "mean over datasets of the accuracy on each"),
    ("gain_at_best", "Gain@B", "AvgAcc / that of the best single target - 1"),
    ("gap_at_oracle", "Gap@O", "1 - AvgAcc / the oracle's"),
    ("perf_gain", "PerfGain", "accuracy above the best single target at argmax"),
    ("perf_gain_in_hindsight", "PerfGain in hindsight", "at the setting best on these queries"),
    ("cost_save", "CostSave", "cheaper than the best single target, at a setting chosen on "
     "calibration rows to be as accurate"),
    ("pareto_dist", "ParetoDist", "distance to the single targets' Pareto frontier, 0 beyond it"),
    ("router_arena_score", "RouterArena score", "accuracy and log cost in one number"),
    ("apgr", "APGR", "share of the gap from weak to strong recovered, mean over strong shares"),
    ("cpt_50", "CPT(50%)", "least strong share that recovers half of the gap"),
    ("cpt_80", "CPT(80%)", "least strong share that recovers 80% of it"),
)  # fmt: skip


def field(metrics: dict[str, Any]) -> Html:
    """Value and interval of each; what does not exist comes with its reason."""
    found, reasons = metrics["field"], metrics["reasons"]
    if found is None:
        return tag("p", f"– ({reasons['field']})")
    rows: list[list[object]] = []
    for key, name, meaning in _NAMES:
        entry = found[key]
        value = number(entry and entry["value"], "{:.4f}", reasons.get(f"field/{key}"))
        known = entry is not None and entry["low"] is not None
        interval = f"{entry['low']:.4f} to {entry['high']:.4f}" if known else "–"
        rows.append([name, value, interval, meaning])
    caption = (
        f"Intervals of 95% from {found['draws']:,} draws of groups of queries, the same draws for "
        f"all; no model is refitted in a draw."
    )
    parts = [table(("metric", "value", "95% interval", "meaning"), rows, caption,
                   text_columns=(3,))]  # fmt: skip
    saving = found["cost_save"]
    if saving is not None:
        parts.append(tag("p", (
            f"CostSave is had at an accuracy of {saving['accuracy']:.1%} against the best single "
            f"target's {saving['best_single_accuracy']:.1%}; the probability that it is below that "
            f"is {saving['probability_below_best_single']:.0%} over the draws.")))  # fmt: skip
    return join(parts)
