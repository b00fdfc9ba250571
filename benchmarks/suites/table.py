"""What is shown of the results: a Markdown table, lines, and one picture."""

import importlib.util
import io
from typing import Any

_MIB = 2**20
_PROGRAM_HEAD = (
    "program",
    "batch x tokens",
    "chips",
    "memory of a chip",
    "cycles",
    "of them fused kernels, at least",
    "of the matrix rate",
    "dearest operations",
    "copied and converted",
    "collectives",
)
_HEAD = ("contestant", "seconds", "times ours", "compiling s", "limit", "share of it", "padding",
         "tokens/s", "host MiB", "device MiB")  # fmt: skip


def markdown(results: dict[str, Any], run: dict[str, Any]) -> str:
    """All suites as one Markdown text.

    Args:
      results: By suite, as the suites return them.
      run: Of `describe_run`, with `hardware` and `command`.
    """
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    hardware = run["hardware"]
    lines = [
        "# Benchmark",
        "",
        f"    {run['command']}",
        "",
        f"{hardware['cpu']}, {hardware['cores']} cores; {', '.join(hardware['devices'])}. "
        f"{versions}; revision {run['git_revision']}. {run['minutes']:.1f} minutes.",
        "",
        "Contestants ran in turn after a warm-up of each; seconds are medians, 'times ours' the "
        "median ratio of the pairs with their range. 'Share of it' is the work without padding "
        "over the machine's matrix-product rate (compute) or bandwidth (memory), measured in the "
        "same rounds. Results were checked equal first.",
    ]
    return "\n".join([*lines, "", *(suite(name, result) for name, result in results.items())])


def suite(name: str, result: dict[str, Any]) -> str:
    """One suite as Markdown."""
    lines = [f"## {name}", "", f"{result['title']} {result['minutes']:.1f} minutes.", ""]
    rows = result.get("rows", [])
    first: dict[str, Any] = next(iter(rows), {})
    lines += (_programs if "cycles" in first else _pods if "hosts" in first else _rows)(rows)
    return "\n".join([*lines, *(f"- {text}" for text in notes(result))]) + "\n"


def notes(result: dict[str, Any]) -> list[str]:
    """What stands beside a suite's rows: scaling, agreement, figures, what was left out."""
    lines = [f"left out: {text}" for text in result.get("left_out", [])]
    for row in result.get("scaling", []):
        points = ", ".join(
            f"{value:g}: {seconds:.3g} s"
            for value, seconds in zip(row["values"], row["seconds"], strict=True)
        )
        slope = row["exponent"]
        power = "" if slope is None else f"; exponent {slope:.2f}"
        lines.append(f"{row['what']} against {row['against']}: {points}{power}")
    lines += [f"{key}: {_number(value)}" for key, value in result.get("figures", {}).items()]
    lines += [
        f"agreement, {key}: {value:.1e}" for key, value in result.get("agreement", {}).items()
    ]
    lines += [f"measured {key}: {value:.3g}" for key, value in result.get("rates", {}).items()]
    return lines


def picture(results: dict[str, Any]) -> bytes | None:
    """Bars of every suite, seconds on a logarithmic axis, as PNG; None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    shown = {
        name: result
        for name, result in results.items()
        if result.get("rows") and "seconds" in result["rows"][0]
    }
    if not shown:
        return None
    heights = [1 + len(result["rows"]) for result in shown.values()]
    figure = Figure(figsize=(9, 0.32 * sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (name, result) in zip(axes, shown.items(), strict=True):
        rows = result["rows"][::-1]
        seconds = [row["seconds"] for row in rows]
        colours = ["#2a6f97"] + ["#a9b4c2"] * (len(rows) - 1)
        ax.barh(range(len(rows)), seconds, color=colours[::-1])
        ax.set_yticks(range(len(rows)), [row["contestant"] for row in rows], fontsize=8)
        ax.set_xscale("log")
        ax.set_xlim(min(seconds) / 2, max(seconds) * 4)
        # Each bar says its seconds; the labels of a logarithmic axis run into one another.
        ax.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
        for y, row in enumerate(rows):
            ratio = row["ratio"]["median"]
            ax.text(row["seconds"], y, f" {_number(row['seconds'])} s, {ratio:.2f}x", va="center",
                    fontsize=8)  # fmt: skip
        ax.set_title(name, loc="left", fontsize=9)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
    axes[-1].set_xlabel("seconds (logarithmic), and times ours", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    cells = [_cells(row) for row in rows]
    # Columns that nothing fills are not shown.
    used = [i for i in range(len(_HEAD)) if any(row[i] for row in cells)]
    lines = ["| " + " | ".join(_HEAD[i] for i in used) + " |", "|" + " --- |" * len(used)]
    lines += ["| " + " | ".join(row[i] for i in used) + " |" for row in cells]
    return [*lines, ""]


def _programs(rows: list[dict[str, Any]]) -> list[str]:
    """Programs that were compiled and not run, a table a topology and shape."""
    lines = []
    for topology, shape in dict.fromkeys((row["topology"], row["shape"]) for row in rows):
        lines += [f"### {shape} on {topology}", "", "| " + " | ".join(_PROGRAM_HEAD) + " |",
                  "|" + " --- |" * len(_PROGRAM_HEAD)]  # fmt: skip
        own = [row for row in rows if (row["topology"], row["shape"]) == (topology, shape)]
        lines += ["| " + " | ".join(_program_cells(row)) + " |" for row in own]
        lines.append("")
    return lines


def _pods(rows: list[dict[str, Any]]) -> list[str]:
    """Jobs on paper, a column each."""
    stages = list(dict.fromkeys(stage for row in rows for stage in row["stages"]))
    asked = list(dict.fromkeys(kind for row in rows for kind in row["requests"]))
    shown: dict[str, list[str]] = {
        "hosts": [f"{row['hosts']} x {row['chips']} {row['chip']}" for row in rows],
        "data": ["queries alone" if row["alone"] else "outcomes" for row in rows],
        "failures of a host in a day": [_number(row["failures"]) for row in rows],
        "starts of the job": [_number(row["starts"]) for row in rows],
        "minutes": [_number(row["wall_seconds"] / 60) for row in rows],
        **{
            f"of them: {stage}": [_number(row["stages"].get(stage, 0.0) / 60) for row in rows]
            for stage in stages
        },
        "chips at work on what is kept": [_percent(row["device_share"]) for row in rows],
        "row blocks": [f"{row['blocks']:,}" for row in rows],
        "of them made twice": [_number(row["blocks_twice"]) for row in rows],
        "ranges tokenised twice": [_number(row["ranges_twice"]) for row in rows],
        "work lost": [f"{row['lost_share']:.3%}" for row in rows],
        **{
            f"requests: {kind}": [f"{row['requests'].get(kind, 0):,}" for row in rows]
            for kind in asked
        },
        "memory of a process, GB": [_number(row["memory_bytes"] / 1e9) for row in rows],
    }
    lines = ["| " + " | ".join(["shape", *(row["shape"] for row in rows)]) + " |"]
    lines.append("|" + " --- |" * (1 + len(rows)))
    return [*lines, *(f"| {' | '.join([name, *cells])} |" for name, cells in shown.items()), ""]


def _program_cells(row: dict[str, Any]) -> list[str]:
    behind = f" behind {row['prefix_tokens']}" if row["prefix_tokens"] else ""
    name = [row["program"], f"{row['batch']} x {row['tokens']}{behind}", str(row["chips"])]
    if row["cycles"] is None:
        return [*name, "does not fit", "", "", "", row["why"], "", ""]
    exchanged, moved, kernels = row["collectives"], row["moved"], row["kernels"]
    loops = f" (loops of data: {row['loops_of_data_run']:g} times)" if row["loops_of_data"] else ""
    collectives = (
        f"{exchanged['count']:g}, {_mebibytes(exchanged['bytes'])} MiB, "
        f"{exchanged['share_of_cycles']:.0%} of cycles"
    )
    return [
        *name,
        f"{row['memory_bytes'] / 2**30:.2f} GiB ({row['memory_bytes'] / row['chip_bytes']:.0%})",
        f"{row['cycles']:,.0f}" + loops,
        f"{kernels['cycles_at_least']:,.0f}" if kernels["count"] else "",
        _percent(row["share_of_matrix_rate"]),
        "; ".join(f"{d['name']} {d['cycles'] / row['cycles']:.0%}" for d in row["dearest"]),
        f"{_mebibytes(moved['bytes'])} MiB, {moved['cycles'] / row['cycles']:.1%}",
        collectives if exchanged["count"] else "",
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    ratio, share = row["ratio"], row["share_run"]
    name = row["contestant"] + (f" ({share:.0%} of it, scaled)" if share < 1 else "")
    return [
        name,
        _number(row["seconds"]),
        f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        "" if row.get("seconds_compiling") is None else _number(row["seconds_compiling"]),
        row.get("limit", ""),
        _percent(row.get("share_of_limit")),
        _percent(row.get("padding")),
        f"{row['tokens_per_second']:,.0f}" if row.get("tokens_per_second") else "",
        _mebibytes(row.get("peak_host_bytes")),
        _mebibytes(row.get("peak_device_bytes")),
    ]


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _mebibytes(n_bytes: int | None) -> str:
    return f"{n_bytes / _MIB:,.0f}" if n_bytes else ""
