"""A comparison as text."""

from typing import Any

from routerjax.routing.compare_figures import METRICS

_NAMES = {"cost": "cost, USD per query"}


def comparison_lines(found: dict[str, Any]) -> list[str]:
    """The figures of `compare` as a table of text.

    Args:
      found: What `compare` returned.
    """
    lines = [
        f"{found['n_queries']:,} queries, {len(found['targets'])} targets, "
        f"{found['n_folds']} outer folds, {found['n_seeds']} seeds; [95% interval over groups]"
    ]
    width = max(len(row["name"]) for row in found["contestants"])
    for metric in METRICS:
        lines += ["", _NAMES.get(metric, metric)]
        for i, row in enumerate(found["contestants"]):
            form = "#.3g" if metric == "cost" else ".4f"
            line = f"  {row['name']:{width}}  {_text(row[metric], form)}"
            if i:
                line += f"  difference {_text(row['difference'][metric], '+' + form)}"
            lines.append(line)
    return lines


def _text(number: dict[str, Any] | None, form: str) -> str:
    if number is None:
        return "none"
    low, high, sd = (number[name] for name in ("low", "high", "seed_sd"))
    ends = f"[{low:{form}}, {high:{form}}]" if low is not None else "[no interval]"
    return f"{number['value']:{form}} {ends}" + (f" seed sd {sd:.4f}" if sd is not None else "")
