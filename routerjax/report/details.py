"""The report's tables of single targets, pairs of targets and datasets."""

from typing import Any

from routerjax.report.html import Html, join, number, percent, table, tag


def auc_note(metrics: dict[str, Any]) -> Html:
    """Whether the AUC is earned within datasets or between them."""
    overall, within = metrics["mean_auc"], metrics["mean_within_dataset_auc"]
    if overall is None:
        return tag("p", f"AUC: – ({metrics['reasons']['mean_auc']}).")
    text = (
        f"AUC is the share of (right, wrong) pairs of queries that the router orders rightly; its "
        f"mean over targets is {overall:.3f}. "
    )
    if within is None:
        why = metrics["reasons"]["mean_within_dataset_auc"]
        return tag("p", text, f"Within datasets: – ({why}), so it cannot be told how much of that "
                   "is recognising which dataset a query comes from.")  # fmt: skip
    alone = metrics["dataset_only_auc"]
    text += "Datasets differ in difficulty, so part of that is had by recognising the dataset"
    text += "" if alone is None else f": its name alone gives {alone:.3f}"
    text += (
        f". Between queries of the same dataset it is {within:.3f}, where 0.5 is chance. Whether "
        f"that is difficulty cannot be told from this number: a router that was taught the names "
        f"alone lies above 0.5 too, as queries that look like a hard dataset's are harder. "
        f"experiments.compare trains one (--control) and claims difficulty only where the interval "
        f"lies above that one's. "
    )
    if within < 0.6:
        text += "Among queries of one kind this router has little to go by."
    return tag("p", text)


def auc(metrics: dict[str, Any]) -> Html:
    """Accuracy, AUC and AUC within datasets of each target."""
    within, reasons = metrics["within_dataset_auc"], metrics["reasons"]
    head = ["target", "outcomes", "accuracy", "AUC"]
    if within is not None:
        head += ["AUC within datasets", "datasets left out"]
    rows: list[list[object]] = []
    for target in metrics["targets"]:
        row: list[object] = [
            target,
            f"{metrics['n_observed'][target]:,}",
            percent(metrics["accuracy_observed"][target]),
            number(metrics["auc"][target], reason=reasons.get(f"auc/{target}")),
        ]
        if within is not None:
            why = reasons.get(f"within_dataset_auc/{target}")
            row.append(number(within[target], reason=why))
            row.append(f"{metrics['within_dataset_left_out'][target]} of {metrics['n_datasets']}")
        rows.append(row)
    mean_row: list[object] = ["mean over targets", "", "", number(metrics["mean_auc"])]
    if within is not None:
        mean_row += [number(metrics["mean_within_dataset_auc"]), ""]
    caption = "Each target on all queries where its outcome is known."
    if within is not None:
        caption += (
            " Datasets with under five right or five wrong ones are left out of the last AUC."
        )
    return table(head, [*rows, mean_row], caption, mark=len(rows))


def calibration(metrics: dict[str, Any]) -> Html:
    """ECE beside its floor, Brier score and log loss of each target, before and after."""
    found = metrics["calibration"]
    sides = [name for name in ("before", "after") if found[name] is not None]
    names = (("ece", "ECE"), ("brier", "Brier score"), ("log_loss", "log loss"))
    head = ["target", *(f"{label} {side}" for _, label in names for side in sides), "ECE by chance"]
    rows: list[list[object]] = []
    for target in metrics["targets"]:
        cells = [number(found[side][key][target]) for key, _ in names for side in sides]
        rows.append([target, *cells, number(found["after"]["ece_floor"][target])])
    cells = [number(found[side][f"mean_{key}"]) for key, _ in names for side in sides]
    rows.append(["mean over targets", *cells, number(found["after"]["mean_ece_floor"])])
    caption = (
        f"ECE: the mean distance of P(correct) from the share of right answers, over "
        f"{found['bins']} bins of as many queries each. By chance alone a perfectly calibrated "
        f"predictor would show the last column."
    )
    parts = [table(head, rows, caption, mark=len(rows) - 1)]
    if found["before"] is None:
        parts.append(tag("p", f"Before: – ({metrics['reasons']['calibration/before']})."))
    return join(parts)


def shares(metrics: dict[str, Any]) -> Html:
    """Share of queries each target gets from the router and from the oracle."""
    oracle = metrics["oracle_share"]
    rows = [
        [target, percent(share), percent(None if oracle is None else oracle[target])]
        for target, share in metrics["routed_share"].items()
    ]
    parts = [table(("target", "router", "oracle"), rows, "Share of queries.")]
    if oracle is None:
        parts.append(tag("p", f"Oracle: – ({metrics['reasons']['oracle_share']})."))
    return join(parts)


def agreement(metrics: dict[str, Any]) -> Html:
    """Queries that all targets, some or none answer rightly."""
    zones = metrics["agreement"]
    if zones is None:
        return tag("p", f"Agreement: – ({metrics['reasons']['agreement']}).")
    split = zones["disagree"]
    rows = [
        [name, f"{zones[key]['n']:,}", percent(zones[key]["share"])]
        for key, name in (
            ("all_right", "all targets right"),
            ("disagree", "some right, some wrong"),
            ("all_wrong", "all targets wrong"),
        )
    ]
    parts = [table(("queries", "n", "share"), rows, "Only the middle ones can be routed well.")]
    if split["router_accuracy"] is not None:
        parts.append(tag("p", (
            f"Where targets disagree the router is right on {split['router_accuracy']:.1%}, the "
            f"best single target on {split['best_single_accuracy']:.1%}, a target at random on "
            f"{split['random_accuracy']:.1%}.")))  # fmt: skip
    return join(parts)


def near_misses(metrics: dict[str, Any]) -> Html:
    """Queries whose two most probable targets are nearly level."""
    if metrics["near_misses"] is None:
        return tag("p", f"Near misses: – ({metrics['reasons']['near_misses']}).")
    rows = [
        [f"under {entry['gap']:g}", f"{entry['n']:,}", percent(entry["share"]),
         percent(entry["router_accuracy"]), percent(entry["best_single_accuracy"])]
        for entry in metrics["near_misses"]
    ]  # fmt: skip
    head = ("gap of the two highest P(correct)", "n", "share", "router", "best single")
    return table(head, rows, "Near misses: the router could hardly tell its two favourites apart.")


def win_rates(metrics: dict[str, Any]) -> Html:
    """P(p_A > p_B | A right, B wrong) of every pair of targets."""
    targets, rates = metrics["targets"], metrics["win_rates"]
    if len(targets) < 2:
        return Html("")
    rows = []
    for a, target in enumerate(targets):
        cells: list[object] = [f"{a + 1}. {target}"]
        for b in range(len(targets)):
            share, n = rates["probability"][a][b], rates["n"][a][b]
            cells.append("" if a == b else join([number(share, "{:.2f}"), tag("small", f"{n:,}")]))
        rows.append(cells)
    head = ["A", *(f"B = {b + 1}" for b in range(len(targets)))]
    caption = (
        "Win rates: where A is right and B wrong, how often the router rates A higher (0.5 = "
        "chance), with the number of such queries. Read A over B and B over A together: a router "
        "that always prefers one of two has 1 there and 0 in the other."
    )
    return table(head, rows, caption)


def per_dataset(metrics: dict[str, Any]) -> Html:
    """Accuracies and AUC of each dataset."""
    if metrics["per_dataset"] is None:
        return tag("p", f"– ({metrics['reasons']['per_dataset']})")
    targets = metrics["targets"]
    rows = [
        [entry["dataset"], f"{entry['n']:,}", f"{entry['n_complete']:,}",
         percent(entry["router_accuracy"]), percent(entry["best_single_accuracy"]),
         percent(entry["oracle_accuracy"]), number(entry["mean_auc"])]
        for entry in metrics["per_dataset"]
    ]  # fmt: skip
    head = ("dataset", "n", "compared", "router", "best single", "oracle", "mean AUC")
    caption = (
        "Accuracies are on the queries compared, those with every outcome known. Small datasets "
        "are noisy: on 100 queries an accuracy is uncertain by about 10 points."
    )
    wide = [
        [entry["dataset"], *(join([percent(entry["accuracy"][t]),
                                   tag("small", number(entry["auc"][t], "AUC {:.2f}"))])
                             for t in targets)]
        for entry in metrics["per_dataset"]
    ]  # fmt: skip
    return join([
        table(head, rows, caption),
        tag("details", tag("summary", "Each target on each dataset"),
            table(("dataset", *targets), wide, "Accuracy, and AUC where there is one.")),
    ])  # fmt: skip


def rounding(found: dict[str, Any]) -> tuple[Html, Html]:
    """What `dtype_errors` found: the worst state in words, and all of them."""
    errors = found["relative_error"]
    worst = max(range(len(errors)), key=errors.__getitem__)
    text = (
        f"{found['encoder_id']} computed in {found['compute_dtype']}. On {found['n_queries']} of "
        f"these queries its pooled hidden states ({', '.join(found['poolings'])}) are off those of "
        f"float32 by at most {errors[worst]:.2%}, in hidden state {worst}. Store and router record "
        f"the dtype and refuse another, so that a query is read as those in training were."
    )
    rows = [[str(layer), f"{error:.3%}"] for layer, error in enumerate(errors)]
    caption = "Root of the summed squared differences over that of the squares in float32."
    return tag("p", text), table(("hidden state", "relative error"), rows, caption)
