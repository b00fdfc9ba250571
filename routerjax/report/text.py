"""Results as lines of text, for the terminal."""

from typing import Any

import numpy as np

from routerjax.evaluation.estimated import known_queries
from routerjax.routing.costs import basis_in_words
from routerjax.studies.estimates import LEFT_OUT, METRICS
from routerjax.sweeps import evidence
from routerjax.sweeps.table import SweepTable


def policy_text(policy: dict[str, Any]) -> str:
    """A policy of metrics.json as flags write it; what it was fitted to is left out."""
    numbers = [f"{v:g}" for v in policy.values() if isinstance(v, int | float)]
    return ":".join([policy["name"], *numbers])


def worth_lines(metrics: dict[str, Any]) -> list[str]:
    """Whether routing beats one model on these queries, and what it would take, as sentences.

    Empty where no accuracy is known, or of a metrics.json from before there was this comparison.
    """
    result = metrics.get("one_model")
    if result is None:
        return []
    policy, reasons = policy_text(metrics["policy"]), metrics["reasons"]
    cost, accuracy = result["at_equal_cost"], result["at_equal_accuracy"]
    saving = (metrics["field"] or {}).get("cost_save_confident")
    words = {
        "more accurate": f"yes, at no higher cost it is more accurate ({policy})",
        "cheaper": f"yes, it is cheaper ({saving and saving['policy']})",
        "worse": f"no, one model that costs no more is more accurate than the router ({policy})",
        "not shown": f"not shown on these {metrics['n_queries']:,} queries ({policy})",
    }
    lines = [f"Is routing worth it here? {words[result['verdict']].capitalize()}."]
    if cost is None:
        lines.append(f"At equal cost: none, {reasons['one_model/at_equal_cost']}.")
    else:
        lines.append(
            f"At equal cost: always {cost['target']}, the best in training that costs no more, is "
            f"right on "
            f"{cost['accuracy']:.1%}, the router {_points(cost['lead'])}."
        )
    if (mixture := result["mixture"]) is not None and len(mixture["shares"]) > 1:
        of = " and ".join(f"{share:.0%} {name}" for name, share in mixture["shares"].items())
        lines.append(
            f"A coin at the same cost, {of}, is right on {mixture['accuracy']:.1%}, the router "
            f"{_points(mixture['lead'])}."
        )
    if accuracy is None:
        lines.append(f"At equal accuracy: none, {reasons['one_model/at_equal_accuracy']}.")
    else:
        lines.append(
            f"At equal accuracy: always {accuracy['target']}, the cheapest as accurate in "
            f"training, is right on {accuracy['accuracy']:.1%}, the router "
            f"{_points(accuracy['lead'])}, at a cost {_less(accuracy['saving'])}."
        )
    for key, words_of in (
        ("cost_save", "As accurate as {} on calibration rows"),
        ("cost_save_confident", "Shown there to be as accurate"),
    ):
        text, saved = words_of.format(metrics["best_single"]), (metrics["field"] or {}).get(key)
        if saved is not None and "policy" in saved:
            lines.append(
                f"{text} ({saved['policy']}): a cost {_less(saved)}, at {saved['accuracy']:.1%} "
                f"against {saved['best_single_accuracy']:.1%}."
            )
        elif f"field/{key}" in reasons:
            lines.append(f"{text}: none, {reasons[f'field/{key}']}.")
    if result["needed_headroom"] is not None:
        lines.append(
            f"To be told from {metrics['best_single']}, the best single target, on as many "
            f"queries, a router has to lead by {100 * result['needed_lead']:.1f} points, "
            f"{result['needed_headroom']:.0%} of the headroom."
        )
    curve = result["learning_curve"]
    if curve is not None:
        steps = ", ".join(
            f"{100 * lead:+.1f} with {rows:,}"
            for rows, lead in zip(curve["rows"], curve["lead"], strict=True)
        )
        lines.append(
            f"Would more outcomes help? A simple stand-in for the router, a regression on the same "
            f"features, was trained on parts of the training queries. Its lead over the best "
            f"single target, in points of accuracy: {steps} queries. An oracle's lead, the most "
            f"that routing can gain: {100 * curve['headroom']:+.1f}. If the trend goes on, twice "
            f"as many queries make the stand-in's lead {100 * curve['at_double']:+.1f}"
            f"{_rows_for(result['needed_lead'], curve)}."
        )
    return lines


def cascade_lines(metrics: dict[str, Any]) -> list[str]:
    """Whether to ask several targets in turn, as a sentence; none without recorded confidences."""
    result = metrics.get("cascade")
    if result is None:
        return []
    near = min(result["settings"], key=lambda s: abs(s["cost_per_query"] - metrics["cost_router"]))
    verdict = {
        "beats routing at equal cost": "use a cascade, it beats routing at equal cost",
        "worse": "route, a cascade is less accurate at equal cost",
        "not shown": "route, no cascade is shown to beat routing at equal cost",
    }[result["verdict"]]
    return [
        f"Ask again where an answer looks doubtful? {verdict.capitalize()}: over all costs it is "
        f"right on {_points(result['lead'])}. Near the router's cost, at "
        f"{1000 * near['cost_per_query']:.3g} USD per 1,000 queries, it asks several targets on "
        f"{near['asked_several']:.0%} of the queries and is right on {near['accuracy']:.1%}, "
        f"routing on {near['routing_accuracy']:.1%}."
    ]


def _rows_for(lead: float | None, curve: dict[str, Any]) -> str:
    """How many rows the learning curve asks for a lead; empty where there is nothing to add."""
    if lead is None or curve["lead"][-1] >= lead:
        return ""
    n_double, ceiling = 2 * curve["rows"][-1], curve["ceiling"]
    needed = f"{100 * lead:+.1f}, which can be told from no lead"
    if ceiling <= max(lead, curve["at_double"]):
        return f", and no number of queries makes it {needed}"
    rows = n_double * ((ceiling - curve["at_double"]) / (ceiling - lead)) ** 2
    return f", and about {float(f'{rows:.2g}'):,.0f} queries make it {needed}"


def _points(lead: dict[str, Any]) -> str:
    """A lead in accuracy, such as "1.2 points more [0.3, 2.1]"."""
    text = f"{abs(100 * lead['value']):.1f} points {'more' if lead['value'] >= 0 else 'less'}"
    if lead["low"] is None:
        return text
    return f"{text} [{100 * lead['low']:+.1f}, {100 * lead['high']:+.1f}]"


def _less(saving: dict[str, Any]) -> str:
    """A saving in cost, such as "12.0% lower [8.0%, 16.0%]"."""
    if saving["value"] is None:
        return "that cannot be compared, as it costs nothing"
    text = f"{abs(saving['value']):.1%} {'lower' if saving['value'] >= 0 else 'higher'}"
    return text if saving["low"] is None else f"{text} [{saving['low']:.1%}, {saving['high']:.1%}]"


def summary_lines(metrics: dict[str, Any]) -> list[str]:
    """The main numbers that `evaluate` returned, a line each; None comes with its reason."""
    reasons = metrics["reasons"]
    lines = worth_lines(metrics) + cascade_lines(metrics)
    lines.append(f"{metrics['n_queries']:,} queries, {len(metrics['targets'])} targets")
    if metrics["mean_auc"] is None:
        lines.append(f"mean AUC: none, {reasons['mean_auc']}")
    else:
        within = metrics["mean_within_dataset_auc"]
        lines.append(
            f"mean AUC {metrics['mean_auc']:.3f}"
            + (f", within datasets {within:.3f}" if within is not None else "")
        )
    lines += _robustness_lines(metrics)
    if metrics["oracle_accuracy"] is None:
        return [*lines, f"accuracy: none, {reasons['router_accuracy']}"]
    lines.append(
        f"accuracy: router ({policy_text(metrics['policy'])}) {_accuracy(metrics, 'router')}, best "
        f"single target "
        f"({metrics['best_single']}) {_accuracy(metrics, 'best_single')}, oracle "
        f"{_accuracy(metrics, 'oracle')}"
    )
    if "n_known" in metrics:
        lines.append("what is not observed is estimated from what is; in brackets 95% intervals")
    captured, possible = metrics["headroom_captured"], metrics["best_possible"]
    if captured is not None:
        line = f"headroom captured {captured:.1%}" + _between(metrics, "headroom_captured")
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
        f"({basis_in_words(metrics['cost_basis'])})",
    ]


def _robustness_lines(metrics: dict[str, Any]) -> list[str]:
    """How many decisions stay on perturbed queries, in one line; none where that was not asked."""
    result = metrics.get("robustness")
    if result is None:
        return []
    each = ", ".join(
        f"{kind} {entry['unchanged']['value']:.1%}"
        for kind, entry in result.items()
        if entry is not None and kind != "all"
    )
    stay, lost = result["all"]["unchanged"], result["all"]["accuracy_lost"]
    ends = "" if stay["low"] is None else f" [{stay['low']:.1%}, {stay['high']:.1%}]"
    line = (
        f"of {result['all']['n']:,} perturbed queries {stay['value']:.1%}{ends} keep their target"
    )
    line += f" ({each})"
    if lost is not None:
        line += f"; accuracy lost {100 * lost['value']:+.1f} points"
        line += (
            "" if lost["low"] is None else f" [{100 * lost['low']:+.1f}, {100 * lost['high']:+.1f}]"
        )
    return [line]


def _accuracy(metrics: dict[str, Any], of: str) -> str:
    """As a percentage; where outcomes are missing with its interval and the queries behind it."""
    value = metrics[f"{of}_accuracy"]
    if value is None:
        return f"none, {metrics['reasons'][f'{of}_accuracy']}"
    if metrics["n_complete"] == metrics["n_queries"]:
        return f"{value:.1%}"
    return f"{value:.1%}{_between(metrics, f'{of}_accuracy')} on {known_queries(metrics, of)}"


def _between(metrics: dict[str, Any], name: str) -> str:
    """The interval in brackets, where outcomes are missing and there is one."""
    pair = metrics["intervals"][name] if "n_known" in metrics else None
    return f" [{pair[0]:.1%}, {pair[1]:.1%}]" if pair else ""


def sweep_lines(table: SweepTable) -> list[str]:
    """What `sweep` returned: best cells, controls as means over targets, the evidence for J."""
    name_width = max(len(name) for name in (*table.targets, "mean over targets"))
    text = [f"{'best cell by cross-validated AUC':{name_width}}  layer  pooling     width  AUC"]
    for target in (*table.targets, None):
        label = "mean over targets" if target is None else target
        try:
            best = table.best(target)
        except ValueError:
            text.append(f"{label:{name_width}}  none: {'; '.join(table.reasons_of(target))}")
            continue
        line = f"{label:{name_width}}  {best.layer:5d}  {best.pooling:10}  {best.pca_dim:5d}  "
        line += f"{best.value:.4f}"
        if table.draws:
            layers = np.array(table.layers)[table.equal_to_best(target).any(axis=(1, 2))]
            line += f"; not distinguishable: layers {_ranges(layers)}"
        text.append(line)
    rows: dict[str, list[float]] = {row["control"]: [] for row in table.controls}
    for row in table.controls:
        rows[row["control"]].append(row["auc"])
    for name, values in rows.items():
        known = [value for value in values if np.isfinite(value)]
        if known:
            text.append(f"control {name}: AUC {np.mean(known):.4f} (mean over layers and targets)")
    text += evidence.lines(table.evidence)
    unsolved = sum("not converged" in entry["reason"] for entry in table.reasons)
    if unsolved:
        text.append(f"{unsolved} cells are not converged to the tolerance: see reasons")
    if table.draws:
        text.append("intervals: 95%, by a bootstrap over groups of queries; no model is refitted")
    return text


def _ranges(layers: np.ndarray) -> str:
    """3, 4, 5, 8 as "3-5, 8"."""
    runs = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


# Each names its policy where it depends on one.
_NAMES = {
    "headroom_captured": "headroom_captured, at argmax",
    "accuracy": "accuracy, at argmax",
    "cost": "cost at argmax, USD per query",
    "aiq": "aiq, over the utility policy",
    "cost_save": "cost_save, at the cheapest quality setting that was as accurate on other folds",
    "cost_save_confident": "cost_save_confident: at settings shown with 95% confidence to be as "
    "accurate; where there is none, best single is asked",
    "ece": "ece; the interval is without what noise adds, so it may lie below the value",
}


_SAVINGS = {"cost_save": "saving", "cost_save_confident": "confident_saving"}


def comparison_lines(study: dict[str, Any]) -> list[str]:
    """What `compare` returned as a table of text."""
    lines = [
        f"{study['n_queries']:,} queries, {len(study['targets'])} targets, "
        f"{study['n_folds']} outer folds, {study['n_seeds']} seeds; [95% interval over groups]"
    ]
    if "n_known" in study:
        lines.append(
            f"outcomes are missing and estimated; those of the choices are known "
            f"on {known_queries(study, 'choice')} or more"
        )
    rows = study["contestants"]
    width = max(len(row["name"]) for row in rows)
    for metric in METRICS:
        if all(row[metric] is None for row in rows):
            continue
        form = "#.3g" if metric == "cost" else ".4f"
        of = (
            f", {basis_in_words(study['cost_basis'], 'output tokens {}')}"
            if metric == "cost"
            else ""
        )
        lines += ["", _NAMES.get(metric, metric) + of]
        for i, row in enumerate(rows):
            line = f"  {row['name']:{width}}  {_text(row[metric], form)}"
            if metric == "mean_within_dataset_auc" and row["control"] is not None:
                above = "above" if row["claims_difficulty"] else "NOT above"
                line += f"  {above} its shuffled control {_text(row['control'], form)}"
            if metric == "ece" and row["ece_floor"] is not None:
                line += f"  floor {row['ece_floor']:.4f}"
            saving = row[_SAVINGS[metric]] if metric in _SAVINGS else None
            if saving is not None:
                line += (
                    f"  at accuracy {saving['accuracy']:.4f}, below best single's "
                    f"{saving['best_single_accuracy']:.4f} with probability "
                    f"{saving['probability_below_best_single']:.2f}"
                )
            if i:
                line += f"  difference {_text(row['difference'][metric], '+' + form)}"
            if metric == "accuracy" and "n_known" in row:
                line += f"  on {known_queries(study | row, 'choice')}"
            lines.append(line)
        if study["dataset_only"] is not None and metric in study["dataset_only"]:
            only = _text(study["dataset_only"][metric], form)
            lines.append(f"  {'(the name of the dataset alone)':{width}}  {only}")
    if study["dataset_folds"]:
        for metric in LEFT_OUT:
            lines += ["", f"{metric}, datasets not trained on ({study['dataset_folds']} folds)"]
            for i, row in enumerate(rows):
                line = f"  {row['name']:{width}}  {_text(row['left_out'][metric], '.4f')}"
                if i:
                    lead = row["left_out"]["difference"][metric]
                    line += f"  difference {_text(lead, '+.4f')}"
                lines.append(line)
    return lines


def _text(number: dict[str, Any] | None, form: str) -> str:
    if number is None:
        return "none"
    low, high, sd = (number[name] for name in ("low", "high", "seed_sd"))
    ends = f"[{low:{form}}, {high:{form}}]" if low is not None else "[no interval]"
    return f"{number['value']:{form}} {ends}" + (f" seed sd {sd:.4f}" if sd is not None else "")


def few_labels_lines(study: dict[str, Any]) -> list[str]:
    """What `few_labels` returned: tables of AUC and of AUC within datasets, a row a method."""
    lines = _table(study, study["auc"], "AUC of a new target")
    if study["within_dataset_auc"] is not None:
        lines += _table(study, study["within_dataset_auc"], "AUC within datasets")
    return lines


def _table(study: dict[str, Any], of: dict[str, Any], title: str) -> list[str]:
    width = max(map(len, of["mean"]))
    # A target whose outcomes are all equal has no AUC.
    n_targets = sum(
        any(value is not None for sizes in curves.values() for draws in sizes for value in draws)
        for curves in of["targets"].values()
    )
    lines = [
        f"{title} on {study['n_test']:,} queries against the number of its outcomes, mean over "
        f"{n_targets} targets left out in turn and {study['draws']} draws; in brackets "
        f"over training from scratch, with the 95% interval over targets",
        " ".join([f"{'':{width}}", *(f"{size:>30}" for size in study["sizes"])]),
    ]
    for method, means in of["mean"].items():
        cells = []
        for mean, lead in zip(means, of["over_scratch"][method], strict=True):
            if mean is None:
                cells.append("–")
            elif method == "from scratch":
                cells.append(f"{mean['value']:.3f}")
            else:
                cells.append(
                    f"{mean['value']:.3f} ({lead['value']:+.3f} [{lead['low']:+.3f}, "
                    f"{lead['high']:+.3f}])"
                )
        lines.append(" ".join([f"{method:{width}}", *(f"{cell:>30}" for cell in cells)]))
    return lines
