"""Writes results into a folder together with their pictures; without matplotlib, without these."""

import io
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from routerjax.probes.table import ProbeTable
from routerjax.runtime.files import Folder
from routerjax.sweeps.table import SweepTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


def save_probes(table: ProbeTable, folder: Any) -> None:
    """Writes `probes.json` and `probes.png`.

    Args:
      table: What `probe` returned.
      folder: A local path, a URL or a `Folder`.

    Raises:
      OSError: It cannot be written.
    """
    table.save(folder)

    def draw() -> dict[str, "Figure | None"]:
        from routerjax.report.probe_picture import draw_probes

        return {"probes.png": draw_probes(table)}

    _write(folder, draw)


def save_sweep(table: SweepTable, folder: Any) -> None:
    """Writes `sweep.json` and its replicates, `sweep.png` and `evidence.png`.

    Args:
      table: What `sweep` returned.
      folder: A local path, a URL or a `Folder`.

    Raises:
      OSError: It cannot be written.
    """
    table.save(folder)

    def draw() -> dict[str, "Figure | None"]:
        from routerjax.report.sweep_picture import draw_evidence, draw_sweep

        return {"sweep.png": draw_sweep(table), "evidence.png": draw_evidence(table.evidence)}

    _write(folder, draw)


def save_comparison(comparison: dict[str, Any], folder: Any) -> None:
    """Writes `compare.json` and, where prices are known, `compare.png`.

    Args:
      comparison: What `compare` returned.
      folder: A local path, a URL or a `Folder`.

    Raises:
      OSError: It cannot be written.
    """
    Folder(folder).write_json("compare.json", comparison)

    def draw() -> dict[str, "Figure | None"]:
        from routerjax.report.study_pictures import draw_comparison

        return {"compare.png": draw_comparison(comparison)}

    _write(folder, draw)


def save_few_labels(study: dict[str, Any], folder: Any) -> None:
    """Writes `few_labels.json` and `few_labels.png`.

    Args:
      study: What `few_labels` returned.
      folder: A local path, a URL or a `Folder`.

    Raises:
      OSError: It cannot be written.
    """
    Folder(folder).write_json("few_labels.json", study)

    def draw() -> dict[str, "Figure | None"]:
        from routerjax.report.study_pictures import draw_few_labels

        return {"few_labels.png": draw_few_labels(study)}

    _write(folder, draw)


def _write(folder: Any, draw: Callable[[], dict[str, "Figure | None"]]) -> None:
    """Writes what `draw` drew, as PNG; it imports matplotlib, which may be missing."""
    try:
        figures = draw()
    except ModuleNotFoundError:
        logger.warning("no pictures: pip install routerjax[report] brings matplotlib")
        return
    for name, figure in figures.items():
        if figure is not None:
            png = io.BytesIO()
            figure.savefig(png, format="png", dpi=120)
            Folder(folder).write_bytes(name, png.getvalue())
