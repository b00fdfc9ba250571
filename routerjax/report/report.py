"""report.html: one file with the numbers, what they mean, and the pictures. No network, no script.

The text says no more than the numbers do: where costs were assumed, where an interval includes
nothing gained, and where the router may only be recognising datasets.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from routerjax.report import details, sweep_section, tables
from routerjax.report.html import Html, flat, join, page, picture, table, tag
from routerjax.runtime.files import Folder

if TYPE_CHECKING:
    from routerjax.probes.table import ProbeTable
    from routerjax.sweeps.table import SweepTable

logger = logging.getLogger(__name__)

_NO_PICTURES = "No pictures: matplotlib is not installed (pip install routerjax[report] brings it)."


def write_report(
    folder: str | Folder,
    *,
    title: str,
    metrics: dict[str, Any],
    probes: "ProbeTable | None" = None,
    sweep: "SweepTable | None" = None,
    history: dict[str, Any] | None = None,
    data_summary: list[str] | None = None,
    rounding: Sequence[dict[str, Any]] = (),
    config: dict[str, Any] | None = None,
) -> None:
    """Writes `report.html`.

    Args:
      folder: Where to; a local path, a URL or a `Folder`.
      title: Of the page.
      metrics: What `evaluate_predictions` returned, or metrics.json read back.
      probes: Of the training rows; None leaves the section out.
      sweep: Cross-validated AUC of every cell; None leaves the section out.
      history: Losses of training, as `figures.training_curves` takes them; None leaves them out.
      data_summary: Sentences about the data.
      rounding: What `dtype_errors` says of each encoder; none leaves the section out.
      config: Nested settings and versions, for the table at the end.

    Raises:
      OSError: The folder cannot be written.
    """
    drawn = _draw(metrics, history, probes, sweep)
    body: list[object] = [tables.lead(metrics)]
    if drawn is None:
        logger.warning("report.html will be without pictures: pip install routerjax[report]")
        body.append(tag("p", _NO_PICTURES, css="dim"))
        drawn = {}
    if data_summary:
        body += [_heading("Data"), tag("ul", *(tag("li", line) for line in data_summary))]
    body += [_heading("Accuracy and cost"), tables.standings(metrics), tables.savings(metrics)]
    body += [drawn.get("cost", ""), tables.cost_notes(metrics)]
    body += [_heading("By the metrics of other benchmarks"), tables.field(metrics)]
    body += [_heading("Does it know difficulty, or the dataset?"), details.auc_note(metrics)]
    body += [drawn.get("auc", ""), details.auc(metrics)]
    body += [_heading("Can the probabilities be believed?"), drawn.get("calibration", "")]
    body += [details.calibration(metrics)]
    body += [_heading("Where queries go"), drawn.get("share", ""), details.shares(metrics)]
    body += [_heading("Where targets disagree"), details.agreement(metrics)]
    body += [details.near_misses(metrics), details.win_rates(metrics)]
    body += [_heading("Dataset by dataset"), details.per_dataset(metrics)]
    if probes is not None:
        body += [_heading("Probes of the hidden states"), drawn.get("probes", "")]
        body.append(_probe_rows(probes))
    if sweep is not None:
        body += [_heading("Which hidden state? A sweep of every cell"), drawn.get("sweep", "")]
        body += [sweep_section.best_cells(sweep), sweep_section.notes(sweep)]
        body += [_heading("Controls of the sweep"), sweep_section.controls(sweep)]
        body += [sweep_section.transfer(sweep), _heading("Does J find the layers?")]
        body += [drawn.get("evidence", ""), sweep_section.evidence_lines(sweep)]
    if history is not None:
        body += [_heading("Training"), drawn.get("training", "")]
        body.append(
            tag("p", f"{len(history['kept'])} of {len(history['best_epoch_K'])} members are kept, "
                "those of the lowest validation loss; the prediction is the mean of their "
                "probabilities.")
        )  # fmt: skip
    if rounding:
        body.append(_heading("What the encoder's rounding changes"))
        for found in rounding:
            content = details.rounding(found)
            body.append(join([content[0], _folded(content[1], len(found["relative_error"]))]))
    body += [_heading("Terms"), tables.terms()]
    if config:
        rows = flat(config)
        body.append(_heading("Configuration"))
        body.append(_folded(table(("setting", "value"), rows, text_columns=(1,)), len(rows)))
    Folder(folder).write_bytes("report.html", page(title, *body).encode())


def _draw(
    metrics: dict[str, Any],
    history: dict[str, Any] | None,
    probes: "ProbeTable | None",
    sweep: "SweepTable | None",
) -> dict[str, Html] | None:
    """The pictures by name; None where matplotlib is not installed."""
    try:
        from routerjax.report import cost_picture, pictures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
    drawn = {
        "auc": picture(pictures.auc_bars(metrics), "Bars of the AUC of each target"),
        "calibration": picture(
            pictures.reliability_curves(metrics),
            "Observed against predicted shares of right answers",
        ),
        "share": picture(pictures.routed_share(metrics), "Bars of the share of queries per target"),
    }
    if metrics["frontier"] is not None:
        drawn["cost"] = picture(
            cost_picture.accuracy_against_cost(metrics),
            "Accuracy against cost of the router, the single targets and the oracle",
        )
    if history is not None:
        drawn["training"] = picture(
            pictures.training_curves(history), "Losses of the ensemble's members over the epochs"
        )
    if probes is not None:
        from routerjax.report import probe_picture

        drawn["probes"] = picture(
            probe_picture.draw_probes(probes),
            "Fisher separability and effective dimensions over the hidden states",
        )
    if sweep is not None:
        from routerjax.report import sweep_picture

        drawn["sweep"] = picture(
            sweep_picture.draw_sweep(sweep),
            "Cross-validated AUC over hidden states, targets and PCA widths",
        )
        drawn["evidence"] = picture(
            sweep_picture.draw_evidence(sweep.evidence), "Rank correlation of J and d_eff with AUC"
        )
    return drawn


def _probe_rows(probes: "ProbeTable") -> Html:
    """J (mean over targets), dimensions and anisotropy of every hidden state and pooling."""
    numbers = [probes.mean_over_targets()]
    numbers += [probes.get(f"{name}/standardised") for name in ("d_eff", "entropy_dim", "n95")]
    numbers.append(probes.get("anisotropy"))
    head = (
        "hidden state",
        "pooling",
        "J, mean over targets",
        "d_eff",
        "spectral-entropy dimension",
        "components for 95%",
        "anisotropy",
    )
    rows = [
        [str(layer), pooling, *(_plain(float(value_LP[i, j])) for value_LP in numbers)]
        for i, layer in enumerate(probes.layers)
        for j, pooling in enumerate(probes.poolings)
    ]
    return _folded(table(head, rows, text_columns=(1,)), len(rows))


def _plain(value: float) -> str:
    return "–" if value != value else f"{value:.4g}"


def _heading(text: str) -> Html:
    return tag("h2", text)


def _folded(content: Html, n_rows: int) -> Html:
    """A long table behind a line that opens it."""
    if n_rows <= 12:
        return content
    return tag("details", tag("summary", f"{n_rows} rows"), join([content]))
