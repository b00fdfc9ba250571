"""ProbeTable: rank, save, load, draw."""

import json
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from routerjax.probes.table import ProbeTable
from routerjax.report.probe_picture import draw_probes
from routerjax.report.save import save_probes
from routerjax.runtime.files import Folder


def _table(n_layers=4, poolings=("last", "mean"), n_targets=2, gaps=True):
    rng = np.random.default_rng(0)
    shape = (n_layers, len(poolings))
    j_LPM = rng.random((*shape, n_targets)).astype(np.float32)
    names = [f"{kind}/{space}" for kind in ("d_eff", "entropy_dim", "n95") for space in
             ("raw", "standardised")]  # fmt: skip
    spectrum = {name: (1 + 99 * rng.random(shape)).astype(np.float32) for name in names}
    spectrum["anisotropy"] = rng.random(shape).astype(np.float32)
    reasons = []
    if gaps:
        j_LPM[0, 0] = np.nan
        reasons = [{"layer": 0, "pooling": poolings[0], "target": None, "reason": "constant"}]
    return ProbeTable(
        layers=tuple(range(n_layers)),
        poolings=poolings,
        targets=tuple(f"target-{m}" for m in range(n_targets)),
        fisher={"trace/standardised": j_LPM, "lda/pca8": 2 * j_LPM[:, ::-1]},
        spectrum=spectrum,
        reasons=reasons,
        n_queries=1234,
    )


def test_rank_orders_cells_and_leaves_out_nan():
    table = _table()
    j_LPM = table.fisher["trace/standardised"]
    ranked = table.rank(target="target-1")
    assert len(ranked) == 4 * 2 - 1
    assert [cell.value for cell in ranked] == sorted(
        (float(j) for j in j_LPM[:, :, 1].reshape(-1) if np.isfinite(j)), reverse=True
    )
    best = ranked[0]
    assert j_LPM[best.layer, table.poolings.index(best.pooling), 1] == best.value
    assert {cell.pooling for cell in table.rank(pooling="last")} == {"last"}
    assert len(table.rank("anisotropy")) == 8


def test_rank_averages_over_the_targets_that_have_a_j():
    table = _table(n_targets=3, gaps=False)
    j_LPM = table.fisher["trace/standardised"]
    j_LPM[:, :, 2] = np.nan  # A target with one class.
    j_LPM[1, 1, 0] = np.nan
    expected = {
        (i, name): j_LPM[i, k, :2].mean()
        for i in range(4)
        for k, name in enumerate(("last", "mean"))
    }
    del expected[1, "mean"]  # Not the mean over the target that is left.
    found = {(cell.layer, cell.pooling): cell.value for cell in table.rank()}
    assert found == pytest.approx(expected)
    j_LPM[:] = np.nan
    assert table.rank() == []


def test_rank_refuses_unknown_names():
    table = _table()
    with pytest.raises(ValueError, match="name: expected one of trace/standardised, .*, got 'auc'"):
        table.rank("auc")
    with pytest.raises(ValueError, match="pooling: the table has last, mean, got 'max'"):
        table.rank(pooling="max")
    with pytest.raises(ValueError, match="target: the table has target-0, target-1, got 'gpt'"):
        table.rank(target="gpt")
    with pytest.raises(ValueError, match="the same for all targets"):
        table.rank("anisotropy", target="target-0")


def test_reason_matches_wildcards():
    table = _table()
    table.reasons.append(
        {"layer": None, "pooling": None, "target": "target-1", "reason": "one class"}
    )
    assert table.reason(0, "last", "target-0") == ["constant"]
    assert table.reason(0, "last", "target-1") == ["constant", "one class"]
    assert table.reason(2, "mean", "target-1") == ["one class"]
    assert table.reason(2, "mean", "target-0") == table.reason(2, "mean") == []


def test_saved_is_loaded_with_nan_as_null(tmp_path):
    table = _table()
    save_probes(table, str(tmp_path))
    value = json.loads((tmp_path / "probes.json").read_text(), parse_constant=pytest.fail)
    assert value["fisher"]["trace/standardised"][0][0] == [None, None]
    assert (tmp_path / "probes.png").read_bytes().startswith(b"\x89PNG")
    again = ProbeTable.load(Folder(tmp_path))
    for name in ("layers", "poolings", "targets", "reasons", "n_queries"):
        assert getattr(again, name) == getattr(table, name)
    for name in [*table.fisher, *table.spectrum]:
        np.testing.assert_array_equal(again.get(name), table.get(name))


def test_load_refuses_nothing_and_other_versions(tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no table of probes \(probes\.json\): run probe first"
    ):
        ProbeTable.load(str(tmp_path))
    (tmp_path / "probes.json").write_text('{"schema_version": 99}')
    with pytest.raises(ValueError, match="schema version 1"):
        ProbeTable.load(str(tmp_path))


@pytest.mark.parametrize(
    "n_layers, poolings, n_targets",
    [
        (60, ("last", "mean"), 12),
        (1, ("mean",), 1),
        (9, ("last", "mean", "first", "max", "at25"), 30),
    ],
)
def test_plot_draws_every_curve_and_keeps_legends_off_them(n_layers, poolings, n_targets):
    table = _table(n_layers, poolings, n_targets, gaps=n_layers > 1)
    figure = draw_probes(table)
    assert type(figure) is Figure
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.lines]
    assert len(panels) == 2 * len(poolings) + 1
    for j, axes in enumerate(panels[: len(poolings)]):
        curves = {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
        assert len(curves) == n_targets + 1
        drawn = curves["target-0"].get_ydata()
        np.testing.assert_array_equal(drawn, table.fisher["trace/standardised"][:, j, 0])
    styles = {(line.get_color(), str(line._dash_pattern)) for line in
              panels[0].lines if line.get_label().startswith("target")}  # fmt: skip
    assert len(styles) == min(n_targets, 24)
    assert all(axes.get_xlabel() or axes.get_ylabel() or j for j, axes in enumerate(panels))
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert len(legends) == 3
    whole = figure.bbox
    for legend in legends:
        box = legend.get_window_extent()
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0
        assert not any(box.overlaps(axes.get_window_extent()) for axes in panels)
    for one in legends:
        assert not any(one is not two and one.get_window_extent().overlaps(
            two.get_window_extent()) for two in legends)  # fmt: skip


def test_plot_leaves_no_window_open():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    draw_probes(_table(), "lda/pca8")
    assert pyplot.get_fignums() == before


def test_without_matplotlib_the_numbers_are_saved_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level("WARNING"):
        save_probes(_table(), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["probes.json"]
    assert "routerjax[report]" in caplog.text
