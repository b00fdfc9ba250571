"""Which targets of a large pool pictures and wide tables show."""

from typing import Any

MOST = 24  # As many as there are line styles.


def shown_targets(metrics: dict[str, Any], most: int = MOST) -> list[str]:
    """The targets that pictures and wide tables show: all of a small pool.

    Of more than `most`, in the order of the pool: the best single one, the dearest, and those that
    the router and the oracle ask most.

    Args:
      metrics: What `evaluate_predictions` returned.
      most: How many there is place for.
    """
    targets: list[str] = metrics["targets"]
    if len(targets) <= most:
        return targets
    oracle = metrics["oracle_share"] or {}
    always = {metrics["best_single"], metrics["most_expensive"]}

    def weight(target: str) -> tuple[bool, float, float]:
        asked = max(metrics["routed_share"][target], oracle.get(target, 0.0))
        return target in always, asked, metrics["accuracy"][target] or 0.0

    kept = sorted(targets, key=weight, reverse=True)[:most]
    return [target for target in targets if target in kept]
