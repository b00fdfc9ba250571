"""What a report says about metrics: one function a table or paragraph, each of the metrics dict."""

from typing import Any

from routerjax.report.html import Html, join, number, percent, table, tag, usd

_BASIS = {
    "recorded": "Costs are of the output tokens that were recorded for each answer, times the "
    "prices. The policy saw only the cost expected beforehand.",
    "assumed": "Costs are assumed: the lengths of the answers were not all recorded, here or in "
    "training, so every answer of a target is priced at its expected number of output tokens. "
    "Savings are as good as that assumption.",
}


def lead(metrics: dict[str, Any]) -> Html:
    """The main result in three sentences."""
    reasons, policy = metrics["reasons"], _policy(metrics)
    if metrics["router_accuracy"] is None:
        return tag("p", f"No accuracy: {reasons['router_accuracy']}.", css="lead")
    text = (
        f"On {_rows(metrics)} the router ({policy}) is right on "
        f"{metrics['router_accuracy']:.1%}{_interval(metrics, 'router_accuracy')}, the best single "
        f"target, {metrics['best_single']}, on {metrics['best_single_accuracy']:.1%}, an oracle on "
        f"{metrics['oracle_accuracy']:.1%}. "
    )
    if metrics["headroom_captured"] is None:
        text += f"Headroom captured: none to tell, {reasons['headroom_captured']}. "
    else:
        text += (
            f"It captures {metrics['headroom_captured']:.1%} of the headroom between the two"
            f"{_interval(metrics, 'headroom_captured')}. "
        )
    gain = metrics["intervals"]["router_minus_best_single"]
    if gain is not None and gain[0] <= 0 <= gain[1]:
        text += (
            "The interval of its gain over the best single target includes 0: on this many queries "
            "the two cannot be told apart by accuracy. "
        )
    if metrics["cost_saving_vs_most_expensive"] is not None:
        text += (
            f"It costs {_less(metrics['cost_saving_vs_most_expensive'])} than always asking the "
            f"dearest target, {metrics['most_expensive']}, at {metrics['router_accuracy']:.1%} "
            f"accuracy against that target's {metrics['most_expensive_accuracy']:.1%} "
            f"({metrics['cost_basis']} output tokens)."
        )
    else:
        text += f"No saving can be told: {reasons['cost_saving_vs_most_expensive']}."
    return tag("p", text, css="lead")


def standings(metrics: dict[str, Any]) -> Html:
    """Router, single targets, mixtures and oracle: accuracy and cost on the same queries."""
    scores = metrics["scores_are_fractional"]
    frontier = metrics["frontier"]
    reason = metrics["reasons"].get("router_accuracy")

    def row(name: str, accuracy: str, cost: Any, interval: str | None = None) -> list[object]:
        key = f"{accuracy}_accuracy"
        pair = metrics["intervals"].get(key) if interval is None else None
        cells: list[object] = [name, percent(metrics[key], reason)]
        cells.append("–" if pair is None else f"{pair[0]:.1%} to {pair[1]:.1%}")
        if scores:
            cells.append(number(metrics.get(f"{accuracy}_score")))
        return [*cells, usd(cost)]

    rows = [
        row(f"router, {_policy(metrics)}", "router", metrics["cost_router"]),
        row(f"best single target: {metrics['best_single']}", "best_single",
            metrics["cost_best_single"]),
    ]  # fmt: skip
    hindsight = metrics["best_single_in_hindsight"]
    if hindsight is not None and hindsight != metrics["best_single"]:
        cost = None if metrics["cost"] is None else metrics["cost"][hindsight]
        rows.append(row(f"best single target in hindsight: {hindsight}",
                        "best_single_in_hindsight", cost))  # fmt: skip
    rows.append(row("oracle: cheapest right target", "oracle", metrics["cost_oracle"]))
    extra = [] if frontier is None else [
        ("a target at random", frontier["random"]["accuracy"], frontier["random"]["cost_per_query"])
    ]  # fmt: skip
    if metrics["best_possible"] is not None:
        best = metrics["best_possible"]["router_accuracy"]
        extra.append(("best possible router (knows the simulated P(correct))", best, None))
    for name, accuracy, cost in extra:
        rows.append([name, percent(accuracy), "–", *(["–"] if scores else []), usd(cost)])
    head = ["", "accuracy", "95% interval", *(["mean score"] if scores else []),
            "USD per 1,000 queries"]  # fmt: skip
    caption = f"On {_rows(metrics)}. The best single target is the best on training rows."
    parts = [table(head, rows, caption, mark=0)]
    if (
        hindsight != metrics["best_single"]
        and metrics["headroom_captured_in_hindsight"] is not None
    ):
        share = metrics["headroom_captured_in_hindsight"]
        parts.append(tag("p", f"Measured from the best single target in hindsight the router "
                         f"captures {share:.1%} of the headroom."))  # fmt: skip
    if metrics["n_complete"] < metrics["n_queries"]:
        parts.append(tag("p", (
            f"Outcomes are missing on {metrics['n_queries'] - metrics['n_complete']:,} of "
            f"{metrics['n_queries']:,} queries; the table keeps the others, so that all its rows "
            f"are of the same queries. On all {metrics['n_router_observed']:,} queries where the "
            f"chosen target's outcome is known the router's accuracy is "),
            percent(metrics["router_accuracy_observed"]), "."))  # fmt: skip
    return join(parts)


def savings(metrics: dict[str, Any]) -> Html:
    """Every saving with the accuracies on both sides of it."""
    reasons = metrics["reasons"]
    if metrics["savings_are_at_accuracy"] is None:
        return tag("p", f"Costs and savings: – ({reasons['savings_are_at_accuracy']}).")
    at, zero = metrics["savings_are_at_accuracy"], metrics["zero_router"]
    mine = percent(at["router"])
    rows = [
        [f"always {metrics[key]}, {name}", percent(at[key]), mine, usd(metrics[f"cost_{key}"]),
         percent(metrics[f"cost_saving_vs_{key}"], reasons.get(f"cost_saving_vs_{key}"))]
        for key, name in (("most_expensive", "the dearest"), ("best_single", "the best single"))
    ]  # fmt: skip
    name = "zero_router_saving_at_equal_accuracy"
    equal = None if zero["cost_zero_router"] is None else zero["accuracy"]
    saving = percent(metrics[name], reasons.get(name))
    rows.append(["zero router at equal accuracy", percent(equal), mine,
                 usd(zero["cost_zero_router"]), saving])  # fmt: skip
    head = ("against", "its accuracy", "router's accuracy", "its USD per 1,000", "router saves")
    caption = f"Savings of the router at {usd(metrics['cost_router'])} per 1,000 queries."
    parts = [table(head, rows, caption), tag("p", _BASIS[metrics["cost_basis"]])]
    return join([*parts, _lengths(metrics)])


_SOURCES = {
    "head": "predicted from the query (it beats the median on held-out rows)",
    "median": "the median of the training answers",
    "assumed": "assumed, as none was recorded",
}


def _lengths(metrics: dict[str, Any]) -> Html:
    """Where the lengths that the policy expects come from."""
    found = metrics["output_tokens_from"]
    if found is None:
        return Html("")
    said = [
        (text, [target for target, kind in found.items() if kind == source])
        for source, text in _SOURCES.items()
    ]
    lines = [f"{text}: {', '.join(targets)}" for text, targets in said if targets]
    return tag("p", "Expected lengths of answers are ", "; ".join(lines), ".")


def cost_notes(metrics: dict[str, Any]) -> Html:
    """What the cost picture adds: gain at equal cost, area under the curve."""
    if metrics["frontier"] is None:
        return Html("")
    zero, area = metrics["zero_router"], metrics["cost_coverage"]
    parts = []
    if zero["accuracy_gain_at_equal_cost"] is not None:
        parts.append(
            f"At the router's cost the best mixture of single targets is right on "
            f"{zero['accuracy_zero_router_at_equal_cost']:.1%}, the router on "
            f"{zero['accuracy']:.1%}: {100 * zero['accuracy_gain_at_equal_cost']:+.1f} points."
        )
    if area["router"] is not None:
        parts.append(
            f"Mean accuracy over costs from the cheapest to the dearest single target, every "
            f"dollar weighing the same (AIQ): router {area['router']:.3f}, zero router "
            f"{area['zero_router']:.3f}. Both hulls are fitted on these very queries."
        )
    return tag("p", " ".join(parts))


def terms() -> Html:
    """The words of the report."""
    entries = (
        ("oracle", "asks the cheapest target that is right, or the cheapest of all where none is. "
         "No router can be better; it also profits from answers that were right by luck."),
        ("headroom captured", "(router - best single) / (oracle - best single), in accuracy."),
        ("zero router", "mixes single targets without looking at the query: the non-decreasing "
         "convex hull of their (cost, accuracy) points. Any router must beat it."),
        ("tolerance", "the cheapest target whose predicted P(correct) is within the tolerance of "
         "the highest; with 0 the most probable target is asked."),
        ("budget, quality", "policies that hold a mean cost or a mean accuracy; the setting that "
         "does is fitted on rows the network did not train on."),
        ("95% interval", "over other queries of the same kind, whole groups of near-equal queries "
         "at a time. Another training seed moves the numbers too; that is not in it."),
    )  # fmt: skip
    return tag("ul", *(tag("li", tag("b", name), ": " + text) for name, text in entries))


def _rows(metrics: dict[str, Any]) -> str:
    return f"{metrics['n_complete']:,} queries"


def _policy(metrics: dict[str, Any]) -> str:
    # What a policy was given; what it was fitted to is nested, and stands in metrics.json.
    numbers = [f"{v:g}" for v in metrics["policy"].values() if isinstance(v, int | float)]
    return " ".join([metrics["policy"]["name"], *numbers])


def _interval(metrics: dict[str, Any], name: str) -> str:
    pair = metrics["intervals"][name]
    return "" if pair is None else f" (95% interval {pair[0]:.1%} to {pair[1]:.1%})"


def _less(saving: float) -> str:
    return f"{saving:.1%} less" if saving >= 0 else f"{-saving:.1%} more"


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
