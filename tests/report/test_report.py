"""report.html: whole, self-contained, escaped, and honest about what is missing."""

import base64
import copy
import html.parser
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import routerjax.report
from routerjax.data.dataset import RoutingDataset
from routerjax.evaluation.headline import NO_OUTCOME_OF
from routerjax.evaluation.metrics import evaluate_predictions
from routerjax.probes.table import ProbeTable
from routerjax.report import report
from routerjax.report.report import write_report
from routerjax.report.shown import MOST, shown_targets
from routerjax.report.text import summary_lines
from routerjax.routing.judged import Judged
from routerjax.routing.policies import Argmax, Tolerance
from routerjax.runtime.files import Folder
from routerjax.sweeps.sweep import sweep

EVIL = '<script>alert("x")</script>&\'"'
VOID = {"meta", "img", "link", "br", "hr"}


class _Parser(html.parser.HTMLParser):
    """Collects text and addresses; every element must be closed in turn."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.addresses, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def _read(folder):
    page = Folder(folder).read_bytes("report.html").decode()
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert all(address.startswith("data:image/png;base64,") for address in parser.addresses)
    assert "script" not in parser.tags and "link" not in parser.tags
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    return parser, re.sub(r"\s+", " ", " ".join(parser.text))


def _metrics(make_pool, policy=None, cost=True, rename=None, **kwargs):
    data, p_NM, cost_NM = make_pool(**kwargs)
    if rename is not None:
        object.__setattr__(data, "targets", (rename, *data.targets[1:]))
        object.__setattr__(data, "datasets", (rename, *data.datasets[1:]))
    return evaluate_predictions(
        p_NM,
        Judged(data, paid_NM=cost_NM if cost else None, basis="assumed"),
        policy=policy or Tolerance(0.1),
        best_single=len(data.targets) - 1,
    )


@pytest.fixture(scope="module")
def _plain(make_pool):
    return _metrics(make_pool)


@pytest.fixture
def plain(_plain):
    """Metrics of 600 queries and four targets, of which nothing is missing."""
    return copy.deepcopy(_plain)


@pytest.fixture
def text_alone(monkeypatch):
    """Draws no pictures, which take longer than all the rest: other tests look at them."""
    monkeypatch.setattr(report, "_draw", lambda *_: {})


def _probes(target):
    names = ("d_eff", "entropy_dim", "n95", "rank")
    value_LP = np.array([[np.nan], [0.1234567]], np.float32)
    spectrum = {f"{name}/{space}": value_LP for name in names for space in ("raw", "standardised")}
    return ProbeTable(
        layers=(0, 3),
        poolings=("mean",),
        targets=(target,),
        fisher={"trace/standardised": value_LP[:, :, None]},
        spectrum=spectrum | {"anisotropy": value_LP},
        reasons=[],
        n_queries=600,
    )


def test_all_parts_are_there(make_pool, tmp_path):
    metrics = _metrics(make_pool, missing=0.05, fractional=True)
    ends = {"low": 0.9012, "high": 0.9876}
    stay = {
        "n": 600, "unchanged": {"value": 0.9432} | ends, "accuracy_lost": {"value": 0.0123} | ends,
        "auc_lost": 0.0017, "p_moved": 0.0223,
    }  # fmt: skip
    metrics["robustness"] = {"case": stay, "options": None, "all": stay | {"accuracy_lost": None}}
    loss_EK = np.linspace(0.7, 0.5, 5)[:, None].repeat(3, axis=1)
    write_report(
        tmp_path, title="Routing a pool", metrics=metrics, probes=_probes("a"),
        history={"train_loss_EK": loss_EK, "val_loss_EK": loss_EK, "best_epoch_K": [4, 4, 4],
                 "kept": [0, 2]},
        data_summary=["600 queries of 4 targets"], config={"seed": 0, "versions": {"jax": "0.10"}},
    )  # fmt: skip
    parser, text = _read(tmp_path)
    assert len(parser.addresses) == 6  # cost, AUC, reliability, shares, probes, training
    for expected in (
        "Routing a pool",
        f"{metrics['router_accuracy']:.1%}",
        f"{metrics['best_single_accuracy']:.1%}",
        f"{metrics['oracle_accuracy']:.1%}",
        f"captures {metrics['headroom_captured']:.1%} of the headroom",
        f"{metrics['auc']['target-0']:.3f}",
        f"{metrics['within_dataset_auc']['target-0']:.3f}",
        f"{metrics['mean_within_dataset_auc']:.3f}, where 0.5 is chance",
        "Costs are assumed",
        f"Outcomes are missing on {600 - metrics['n_complete']} of 600 queries",
        "mean score",
        "set-3",
        "0.1235",
        "600 queries of 4 targets",
        "versions.jax",
        "2 of 3 members are kept",
        f"{metrics['calibration']['after']['mean_ece_floor']:.3f}",
        f"{metrics['field']['aiq']['value']:.4f}",
        "was chosen on calibration rows",
        "Before: – (no probabilities before calibration were given)",
        "case 600 94.3% 90.1% to 98.8% 1.2% (90.1% to 98.8%) 0.0017 0.0223",
        "all 600 94.3% 90.1% to 98.8% – 0.0017 0.0223",
    ):
        assert expected in text, expected
    assert "perturbed queries 94.3% [90.1%, 98.8%] keep their target (case 94.3%)" in "\n".join(
        summary_lines(metrics)
    )


@pytest.mark.slow
def test_a_sweep_is_shown_with_its_controls(make_pool, tmp_path):
    rng = np.random.default_rng(0)
    n, datasets = 160, ("maths", "law")
    y_NM = (rng.random((n, 2)) < 0.5).astype(np.float32)
    h_NLPD = rng.normal(size=(n, 3, 1, 8)) + y_NM[:, :1, None, None] * np.arange(3)[:, None, None]
    data = RoutingDataset(
        ids=tuple(f"q{i}" for i in range(n)),
        queries=tuple(f"text {i}" for i in range(n)),
        targets=("<clear>", "vague"),
        y_NM=y_NM,
        groups=tuple(f"g{i}" for i in range(n)),
        datasets=tuple(datasets[i % 2] for i in range(n)),
    )
    blocks = [(slice(0, n), h_NLPD.transpose(1, 2, 0, 3).astype(np.float32))]
    store = SimpleNamespace(
        identity={"store_dtype": "float32"}, ids=data.ids, layers=(0, 1, 2), poolings=("mean",),
        width=8, n_blocks=1,
        query_tokens_N=np.arange(n), rows_of=lambda ids: np.arange(n),
        block_slice=lambda block: slice(0, n),
        blocks=lambda layers, poolings, which: [(at, h[list(layers)]) for at, h in blocks],
    )  # fmt: skip
    table = sweep(store, data, (4, 8), draws=50, controls=("dataset", "transfer", "shuffled"))
    write_report(tmp_path, title="t", metrics=_metrics(make_pool), sweep=table)
    parser, text = _read(tmp_path)
    assert len(parser.addresses) == 6  # cost, AUC, reliability, shares, sweep, evidence
    best = table.best("<clear>")
    assert best.layer == 2
    for expected in (
        "<clear>",
        f"{best.value:.3f}",
        "no model is refitted",
        "the dataset's name alone",
        "trained on",
        "maths",
        "J against AUC, mean",
    ):
        assert expected in text, expected


@pytest.mark.usefixtures("text_alone")
def test_a_saving_stands_beside_both_accuracies(plain, tmp_path):
    write_report(tmp_path, title="t", metrics=plain)
    _, text = _read(tmp_path)
    assert (
        f"{plain['cost_saving_vs_most_expensive']:.1%} less than always asking the dearest "
        f"target, target-3, at {plain['router_accuracy']:.1%} accuracy against that target's "
        f"{plain['most_expensive_accuracy']:.1%} (assumed output tokens)"
    ) in text


def test_names_are_escaped(make_pool, tmp_path):
    metrics = _metrics(make_pool, rename=EVIL)
    write_report(tmp_path, title=EVIL, metrics=metrics, data_summary=[EVIL], config={EVIL: EVIL},
                 probes=_probes(EVIL))  # fmt: skip
    parser, text = _read(tmp_path)
    assert text.count(EVIL) > 10
    assert b"<script" not in Folder(tmp_path).read_bytes("report.html")


@pytest.mark.parametrize("m", [1, 2])
def test_nulls_show_a_dash_with_the_reason(make_pool, tmp_path, m):
    metrics = _metrics(make_pool, Argmax(), cost=False, m=m)
    write_report(tmp_path, title="t", metrics=metrics)
    parser, text = _read(tmp_path)
    assert len(parser.addresses) == 3  # no picture of costs
    assert "Costs and savings: – (the targets' prices are unknown)" in text
    assert "No saving can be told: the targets' prices are unknown" in text
    assert m > 1 or "Near misses: – (there is only one target)" in text


def test_metrics_read_back_give_the_same_report(make_pool, tmp_path):
    metrics = _metrics(make_pool, missing=0.05)
    Folder(tmp_path).write_json("metrics.json", metrics)
    write_report(tmp_path / "a", title="t", metrics=metrics)
    write_report(tmp_path / "b", title="t", metrics=Folder(tmp_path).read_json("metrics.json"))
    pages = [Folder(tmp_path / name).read_bytes("report.html") for name in "ab"]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("missing", [slice(0, 1), slice(None)])
def test_no_complete_row_still_makes_a_report(make_pool, tmp_path, missing):
    data, p_NM, cost_NM = make_pool(n=40)
    data.y_NM[:, missing] = np.nan
    metrics = evaluate_predictions(
        p_NM, Judged(data, paid_NM=cost_NM, basis="assumed"), policy=Argmax(), best_single=1
    )
    write_report(tmp_path, title="t", metrics=metrics)
    _, text = _read(tmp_path)
    if missing.stop is None:
        assert "No accuracy: no chosen target's outcome is observed" in text
        assert summary_lines(metrics)[-1] == f"accuracy: none, {NO_OUTCOME_OF['router']}"
        return
    n = metrics["n_known"]["router"]
    assert 0 < n < 40 and f"On {n} of 40 queries the router" in text
    assert "Agreement: – (no query has an outcome of every target)" in text


@pytest.mark.usefixtures("text_alone")
def test_lines_metrics_and_report_agree_where_outcomes_are_missing(make_pool, tmp_path):
    metrics = _metrics(make_pool, missing=0.1)
    write_report(tmp_path, title="t", metrics=metrics)
    _, text = _read(tmp_path)
    lines = "\n".join(summary_lines(metrics))
    for who in ("router", "best_single", "oracle"):
        value, n = metrics[f"{who}_accuracy"], metrics["n_known"][who]
        low, high = metrics["intervals"][f"{who}_accuracy"]
        assert f"{value:.1%} [{low:.1%}, {high:.1%}] on {n} of 600 queries" in lines
        assert f"{value:.1%} on {n} of 600 queries {low:.1%} to {high:.1%}" in text
    low, high = metrics["intervals"]["headroom_captured"]
    assert f"headroom captured {metrics['headroom_captured']:.1%} [{low:.1%}, {high:.1%}]" in lines


def test_metrics_written_before_say_on_which_queries_they_are(make_pool, tmp_path):
    """They compared complete rows, and had no `n_known`."""
    metrics = _metrics(make_pool, missing=0.1)
    del metrics["n_known"]
    write_report(tmp_path, title="t", metrics=metrics)
    _, text = _read(tmp_path)
    assert f"On {metrics['n_complete']} of 600 queries the router" in text
    lines = "\n".join(summary_lines(metrics))
    assert f"accuracy: router (tolerance:0.1) {metrics['router_accuracy']:.1%}" in lines
    assert f"on {metrics['n_complete']} of 600 queries" in lines


@pytest.mark.usefixtures("text_alone")
def test_a_gain_that_may_be_nothing_is_called_so(plain, tmp_path):
    plain["intervals"]["router_minus_best_single"] = [-0.01, 0.03]
    write_report(tmp_path, title="t", metrics=plain)
    assert "cannot be told apart" in _read(tmp_path)[1]


def test_without_matplotlib_there_are_numbers_and_a_line(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for name in ("pictures", "cost_picture"):
        monkeypatch.delitem(sys.modules, f"routerjax.report.{name}", raising=False)
        monkeypatch.delattr(routerjax.report, name, raising=False)
    write_report(tmp_path, title="t", metrics=plain)
    parser, text = _read(tmp_path)
    assert parser.addresses == []
    assert "matplotlib is not installed" in text
    assert f"{plain['router_accuracy']:.1%}" in text


@pytest.mark.usefixtures("text_alone")
def test_a_report_goes_wherever_a_folder_does(plain):
    folder = Folder("memory://reports") / "one"
    write_report(folder, title="t", metrics=plain)
    _read(folder)


@pytest.mark.usefixtures("text_alone")
def test_where_expected_lengths_come_from_is_said(plain, tmp_path):
    sources = ("head", "median", "assumed", "head")
    plain["output_tokens_from"] = dict(zip(plain["targets"], sources, strict=True))
    write_report(tmp_path, title="t", metrics=plain)
    _, text = _read(tmp_path)
    assert "held-out rows): target-0, target-3; the median" in text
    assert "as none was recorded: target-2." in text


@pytest.mark.usefixtures("text_alone")
def test_what_the_encoders_rounding_changes_is_told(plain, tmp_path):
    write_report(tmp_path, title="t", metrics=plain)
    assert "rounding changes" not in _read(tmp_path)[1]
    found = {"encoder_id": EVIL, "compute_dtype": "bfloat16", "n_queries": 32,
             "poolings": ["last", "mean"], "relative_error": [0.002, 0.0123, 0.011]}  # fmt: skip
    write_report(tmp_path, title="t", metrics=plain, rounding=[found, found])
    text = _read(tmp_path)[1]
    assert text.count("computed in bfloat16. On 32 of these queries") == 2
    assert "at most 1.23%, in hidden state 1" in text and "1.100%" in text


@pytest.mark.slow
def test_a_hundred_targets_are_readable(make_pool, tmp_path):
    metrics = _metrics(make_pool, n=100, m=30, missing=0.03)
    assert (
        shown_targets(metrics | {"targets": metrics["targets"][:MOST]}) == metrics["targets"][:24]
    )
    shown = shown_targets(metrics)
    assert len(shown) == MOST and shown == [t for t in metrics["targets"] if t in shown]
    assert {metrics["best_single"], metrics["most_expensive"]} <= set(shown)
    asked = [max(metrics[key][t] for key in ("routed_share", "oracle_share")) for t in shown]
    left = set(metrics["targets"]) - set(shown)
    assert max(metrics["routed_share"][t] for t in left) <= sorted(asked)[2]
    write_report(tmp_path, title="t", metrics=metrics)
    parser, text = _read(tmp_path)
    assert "show 24 of 30 targets" in text and text.count("30 targets") == 4
    # No table is wider than the targets shown, and tables of all have a row a target.
    page = Folder(tmp_path).read_bytes("report.html").decode()
    assert max(row.count("<td") for row in re.findall(r"<tr.*?</tr>", page, re.S)) == 1 + MOST
    pages = re.findall(r"data:image/png;base64,([^\"]+)", page)
    heights = [int.from_bytes(base64.b64decode(png)[20:24]) for png in pages]
    assert max(heights) < 2000
