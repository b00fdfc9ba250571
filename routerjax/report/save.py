"""Writes results into a folder (a local path, a URL or a `Folder`) together with their pictures.

Where matplotlib is not installed, the pictures are left out and a warning says so.
"""

import importlib.util
import io
import logging
from typing import TYPE_CHECKING, Any

from routerjax.probes.table import ProbeTable
from routerjax.runtime.files import Folder
from routerjax.sweeps.table import SweepTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


def save_probes(table: ProbeTable, folder: Any) -> None:
    """Writes `probes.json` and `probes.png` of what `probe` returned.

    Raises:
      OSError: The folder cannot be written.
    """
    table.save(folder)
    if _can_draw():
        from routerjax.report.probe_picture import draw_probes

        _write(folder, {"probes.png": draw_probes(table)})


def save_sweep(table: SweepTable, folder: Any) -> None:
    """Writes `sweep.json`, its replicates, `sweep.png` and `evidence.png` of what `sweep` returned.

    Raises:
      OSError: The folder cannot be written.
    """
    table.save(folder)
    if _can_draw():
        from routerjax.report.sweep_picture import draw_evidence, draw_sweep

        _write(
            folder, {"sweep.png": draw_sweep(table), "evidence.png": draw_evidence(table.evidence)}
        )


def save_comparison(comparison: dict[str, Any], folder: Any) -> None:
    """Writes `compare.json` and, where prices are known, `compare.png` of what `compare` returned.

    Raises:
      OSError: The folder cannot be written.
    """
    Folder(folder).write_json("compare.json", comparison)
    if _can_draw():
        from routerjax.report.study_pictures import draw_comparison

        _write(folder, {"compare.png": draw_comparison(comparison)})


def save_few_labels(study: dict[str, Any], folder: Any) -> None:
    """Writes `few_labels.json` and `few_labels.png` of what `few_labels` returned.

    Raises:
      OSError: The folder cannot be written.
    """
    Folder(folder).write_json("few_labels.json", study)
    if _can_draw():
        from routerjax.report.study_pictures import draw_few_labels

        _write(folder, {"few_labels.png": draw_few_labels(study)})


def _can_draw() -> bool:
    """Whether matplotlib is installed; warns where it is not."""
    if importlib.util.find_spec("matplotlib"):
        return True
    logger.warning("no pictures: pip install routerjax[report] brings matplotlib")
    return False


def _write(folder: Any, figures: dict[str, "Figure | None"]) -> None:
    for name, figure in figures.items():
        if figure is not None:
            png = io.BytesIO()
            figure.savefig(png, format="png", dpi=120)
            Folder(folder).write_bytes(name, png.getvalue())
