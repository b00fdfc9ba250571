"""The regression guard: ratios in small against those that are committed."""

import json
import pathlib
from typing import Any

# A shared CI machine is noisy; what falls under half is a regression.
LEAST = 0.5


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """Every contestant's time over ours, by "suite: contestant"."""
    return {
        f"{name}: {row['contestant']}": round(row["ratio"]["median"], 3)
        for name, result in results.items()
        for row in result.get("rows", [])[1:]
        if "ratio" in row
    }


def compare(results: dict[str, Any], path: str) -> tuple[list[str], list[str]]:
    """The table, and the ratios that have fallen under half of what is committed.

    Args:
      results: By suite.
      path: A JSON file of `ratios`; what is not in it, or not measured here, is only shown.

    Raises:
      ValueError: There is no such file, or nothing in it was measured here.
    """
    try:
        committed = json.loads(pathlib.Path(path).read_text())["ratios"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"--guard={path}: expected a guard.json, as every run leaves one in its --workdir, "
            f"cannot read it: {error!r}"
        ) from error
    result = ratios(results)
    if not committed.keys() & result.keys():
        raise ValueError(
            f"--guard={path}: none of its {len(committed)} ratios was measured here, so none can "
            f"fall; run its suites (--suite) with the peers installed (pip install '.[bench]')"
        )
    lines, fallen = ["| times ours | committed | now | |", "| --- | --- | --- | --- |"], []
    for name in committed | result:
        was, now = committed.get(name), result.get(name)
        verdict = ""
        if was is None or now is None:
            verdict = "not measured here" if now is None else "not committed"
        elif now < LEAST * was:
            verdict = "fallen under half"
            fallen.append(f"{name}: {now} of {was}")
        cells = [name, *("" if value is None else f"{value:.2f}" for value in (was, now)), verdict]
        lines.append("| " + " | ".join(cells) + " |")
    return lines, fallen
