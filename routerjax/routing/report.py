"""report.html: one file with the numbers, what they mean, and the pictures. No network, no script.

The text says no more than the numbers do: where costs were assumed, where an interval includes
nothing gained, and where the router may only be recognising datasets.
"""

from typing import TYPE_CHECKING, Any

from absl import logging

from routerjax.files import Folder
from routerjax.routing import report_details as details
from routerjax.routing import report_tables as tables
from routerjax.routing.report_html import Html, flat, join, page, picture, table, tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_PICTURES = "No pictures: matplotlib is not installed (pip install routerjax[report] brings it)."


def write_report(
    folder: str | Folder,
    *,
    title: str,
    metrics: dict[str, Any],
    probe_figure: "Figure | None" = None,
    probe_rows: list[dict[str, Any]] | None = None,
    history: dict[str, Any] | None = None,
    data_summary: list[str] | None = None,
    config: dict[str, Any] | None = None,
) -> None:
    """Writes `report.html`.

    Args:
      folder: Where to; a local path, a URL or a `Folder`.
      title: Of the page.
      metrics: What `evaluate_predictions` returned, or metrics.json read back.
      probe_figure: What `ProbeTable.plot` returned; None leaves the picture out.
      probe_rows: Rows of a table under it, all with the keys of the first.
      history: Losses of training, as `figures.training_curves` takes them; None leaves them out.
      data_summary: Sentences about the data.
      config: Nested settings and versions, for the table at the end.

    Raises:
      OSError: The folder cannot be written.
    """
    drawn = _draw(metrics, history)
    body: list[object] = [tables.lead(metrics)]
    if drawn is None:
        logging.warning("report.html will be without pictures: pip install routerjax[report]")
        body.append(tag("p", _NO_PICTURES, css="dim"))
        drawn = {}
    if data_summary:
        body += [_heading("Data"), tag("ul", *(tag("li", line) for line in data_summary))]
    body += [_heading("Accuracy and cost"), tables.standings(metrics), tables.savings(metrics)]
    body += [drawn.get("cost", ""), tables.cost_notes(metrics)]
    body += [_heading("Does it know difficulty, or the dataset?"), details.auc_note(metrics)]
    body += [drawn.get("auc", ""), details.auc(metrics)]
    body += [_heading("Where queries go"), drawn.get("share", ""), details.shares(metrics)]
    body += [_heading("Where targets disagree"), details.agreement(metrics)]
    body += [details.near_misses(metrics), details.win_rates(metrics)]
    body += [_heading("Dataset by dataset"), details.per_dataset(metrics)]
    if probe_figure is not None or probe_rows:
        body += [_heading("Probes of the hidden states"), *_probes(probe_figure, probe_rows)]
    if history is not None:
        body += [_heading("Training"), drawn.get("training", "")]
        body.append(
            tag("p", f"{len(history['kept'])} of {len(history['best_epoch_K'])} members are kept, "
                "those of the lowest validation loss; the prediction is the mean of their "
                "probabilities.")
        )  # fmt: skip
    body += [_heading("Terms"), tables.terms()]
    if config:
        rows = flat(config)
        body.append(_heading("Configuration"))
        body.append(_folded(table(("setting", "value"), rows, text_columns=(1,)), len(rows)))
    Folder(folder).write_bytes("report.html", page(title, *body).encode())


def _draw(metrics: dict[str, Any], history: dict[str, Any] | None) -> dict[str, Html] | None:
    """The pictures by name; None where matplotlib is not installed."""
    try:
        from routerjax.routing import cost_figure, figures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
    drawn = {
        "auc": picture(figures.auc_bars(metrics), "Bars of the AUC of each target"),
        "share": picture(figures.routed_share(metrics), "Bars of the share of queries per target"),
    }
    if metrics["frontier"] is not None:
        drawn["cost"] = picture(
            cost_figure.accuracy_against_cost(metrics),
            "Accuracy against cost of the router, the single targets and the oracle",
        )
    if history is not None:
        drawn["training"] = picture(
            figures.training_curves(history), "Losses of the ensemble's members over the epochs"
        )
    return drawn


def _probes(figure: "Figure | None", rows: list[dict[str, Any]] | None) -> list[Html]:
    parts = []
    if figure is not None:
        parts.append(picture(figure, "Fisher separability and effective dimensions by layer"))
    if rows:
        head = list(rows[0])
        cells = [[_plain(row.get(key)) for key in head] for row in rows]
        parts.append(_folded(table(head, cells), len(rows)))
    return parts


def _plain(value: Any) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _heading(text: str) -> Html:
    return tag("h2", text)


def _folded(content: Html, n_rows: int) -> Html:
    """A long table behind a line that opens it."""
    if n_rows <= 12:
        return content
    return tag("details", tag("summary", f"{n_rows} rows"), join([content]))
