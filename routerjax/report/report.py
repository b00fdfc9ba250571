"""report.html: one file with the numbers, what they mean, and the pictures. No network, no script.

`report.html.jinja` holds every text. It says where costs were assumed, where an interval includes
no gain at all, and where the router may only be recognising datasets. Python gives the template
plain values; jinja2 escapes them all.
"""

import base64
import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from routerjax.evaluation.estimated import known_queries
from routerjax.probes.table import ProbeTable
from routerjax.report.shown import shown_targets
from routerjax.report.sweep_section import sweep_section
from routerjax.report.text import cascade_lines, policy_text, worth_lines
from routerjax.routing.costs import basis_in_words
from routerjax.runtime.files import Folder
from routerjax.sweeps.table import SweepTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_LENGTH_SOURCES = {
    "head": "predicted from the query (it beats the median on held-out rows)",
    "median": "the median of the training answers",
    "assumed": "assumed, as none was recorded",
}


def write_report(
    folder: str | Folder,
    *,
    title: str,
    metrics: dict[str, Any],
    probes: ProbeTable | None = None,
    sweep: SweepTable | None = None,
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
      history: Losses of training, as `pictures.training_curves` takes them; None leaves them out.
      data_summary: Sentences about the data.
      rounding: What `dtype_errors` says of each encoder; none leaves the section out.
      config: Nested settings and versions, for the table at the end.

    Raises:
      OSError: The folder cannot be written.
    """
    pictures = _draw(metrics, history, probes, sweep)
    if not pictures:
        logger.warning("report.html will be without pictures: pip install routerjax[report]")
    page = _template().render(
        title=title,
        metrics=metrics,
        shown=shown_targets(metrics),
        reasons=metrics["reasons"],
        policy=policy_text(metrics["policy"]),
        worth=worth_lines(metrics),
        cascade=cascade_lines(metrics),
        cost_basis=basis_in_words(metrics["cost_basis"]),
        expected_lengths=_expected_lengths(metrics["output_tokens_from"] or {}),
        pictures=pictures,
        probes=None if probes is None else _probe_rows(probes),
        sweep=None if sweep is None else sweep_section(sweep),
        history=history,
        data_summary=data_summary,
        rounding=rounding,
        config=_flat(config or {}),
    )
    Folder(folder).write_bytes("report.html", page.encode())


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("routerjax", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["known_queries"] = known_queries
    environment.filters |= {"fmt": _fmt, "percent": lambda share: _fmt(share, ".1%"), "usd": _usd}
    return environment.get_template("report.html.jinja")


def _fmt(value: float | None, spec: str = ".3f", before: str = "") -> str:
    """The value by a format specification, after a word; an en dash where there is none."""
    return "–" if value is None or value != value else f"{before}{value:{spec}}"


def _usd(cost: float | None) -> str:
    """USD per query as USD per 1,000 queries, to three digits, without powers of ten."""
    if cost is None:
        return "–"
    value = 1000 * cost
    if abs(value) >= 1000:
        return f"${value:,.0f}"
    if value and abs(value) < 1e-4:
        return f"${value:.2e}"
    return f"${value:#.3g}".rstrip(".") if value else "$0"


def _draw(
    metrics: dict[str, Any],
    history: dict[str, Any] | None,
    probes: ProbeTable | None,
    sweep: SweepTable | None,
) -> dict[str, str]:
    """The pictures by name, as PNG in base64; none where matplotlib is not installed."""
    try:
        from routerjax.report import cost_picture, pictures, probe_picture, sweep_picture
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return {}
    figures: dict[str, Figure] = {
        "auc": pictures.auc_bars(metrics),
        "calibration": pictures.reliability_curves(metrics),
        "share": pictures.routed_share(metrics),
    }
    if metrics["frontier"] is not None:
        figures["cost"] = cost_picture.accuracy_against_cost(metrics)
    if history is not None:
        figures["training"] = pictures.training_curves(history)
    if probes is not None:
        figures["probes"] = probe_picture.draw_probes(probes)
    if sweep is not None:
        figures["sweep"] = sweep_picture.draw_sweep(sweep)
        figures["evidence"] = sweep_picture.draw_evidence(sweep.evidence)
    return {name: _png(figure) for name, figure in figures.items()}


def _png(figure: "Figure") -> str:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150, facecolor="white")
    return base64.b64encode(png.getvalue()).decode()


def _expected_lengths(source_of: dict[str, str]) -> list[str]:
    """Each source of the lengths that the policy expects, with its targets."""
    targets_of = {
        text: ", ".join(target for target, kind in source_of.items() if kind == source)
        for source, text in _LENGTH_SOURCES.items()
    }
    return [f"{text}: {targets}" for text, targets in targets_of.items() if targets]


def _probe_rows(probes: ProbeTable) -> list[list[str]]:
    """J (mean over targets), dimensions and anisotropy of every hidden state and pooling."""
    values = [probes.mean_over_targets()]
    values += [probes.get(f"{name}/standardised") for name in ("d_eff", "entropy_dim", "n95")]
    values.append(probes.get("anisotropy"))
    return [
        [str(layer), pooling, *(_fmt(float(value_LP[i, j]), ".4g") for value_LP in values)]
        for i, layer in enumerate(probes.layers)
        for j, pooling in enumerate(probes.poolings)
    ]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, text) of every leaf of nested dicts; a list is one leaf."""
    if isinstance(value, dict) and (value or not prefix):
        items = ((f"{prefix}.{key}" if prefix else str(key), v) for key, v in value.items())
        return [leaf for key, v in items for leaf in _flat(v, key)]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(map(str, value)) or "–")]
    return [(prefix, "–" if value is None or value == {} else str(value))]
