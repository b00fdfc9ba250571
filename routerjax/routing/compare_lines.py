"""A comparison as text."""

from typing import Any

from routerjax.routing.compare_figures import LEFT_OUT, METRICS

_NAMES = {
    "cost": "cost, USD per query",
    "ece": "ece; the interval is without what noise adds, so it may lie below the value",
}


def comparison_lines(found: dict[str, Any]) -> list[str]:
    """The figures of `compare` as a table of text.

    Args:
      found: What `compare` returned.
    """
    lines = [
        f"{found['n_queries']:,} queries, {len(found['targets'])} targets, "
        f"{found['n_folds']} outer folds, {found['n_seeds']} seeds; [95% interval over groups]"
    ]
    rows = found["contestants"]
    width = max(len(row["name"]) for row in rows)
    for metric in METRICS:
        if all(row[metric] is None for row in rows):
            continue
        form = "#.3g" if metric == "cost" else ".4f"
        of = f", output tokens {found['cost_basis']}" if metric == "cost" else ""
        lines += ["", _NAMES.get(metric, metric) + of]
        for i, row in enumerate(rows):
            line = f"  {row['name']:{width}}  {_text(row[metric], form)}"
            if metric == "mean_within_dataset_auc" and row["control"] is not None:
                above = "above" if row["claims_difficulty"] else "NOT above"
                line += f"  {above} its shuffled control {_text(row['control'], form)}"
            if metric == "ece" and row["ece_floor"] is not None:
                line += f"  floor {row['ece_floor']:.4f}"
            if metric == "cost_save" and row["saving"] is not None:
                line += (
                    f"  at accuracy {row['saving']['accuracy']:.4f}, below best single's "
                    f"{row['saving']['best_single_accuracy']:.4f} with probability "
                    f"{row['saving']['probability_below_best_single']:.2f}"
                )
            if i:
                line += f"  difference {_text(row['difference'][metric], '+' + form)}"
            lines.append(line)
        if found["dataset_only"] is not None and metric in found["dataset_only"]:
            only = _text(found["dataset_only"][metric], form)
            lines.append(f"  {'(the name of the dataset alone)':{width}}  {only}")
    if found["dataset_folds"]:
        for metric in LEFT_OUT:
            lines += ["", f"{metric}, datasets not trained on ({found['dataset_folds']} folds)"]
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
