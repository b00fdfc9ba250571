"""The simulated pool: what a router can gain on it, and from what; the texts; the draws.

Routers are judged by the true p_NM. What one of them can read is taken from the texts alone, never
from the design behind them, so that the figures are what an encoder may hope for.
"""

import contextlib
import io
import re
import time

import numpy as np
import pytest

from routerjax.data.groups import normalised
from routerjax.data.simulated.simulate import KINDS, REASONING, simulate
from routerjax.stats.roc_auc import roc_auc

N = 20_000


@pytest.fixture(scope="module")
def data():
    return simulate(N)


@pytest.fixture(scope="module")
def read(data):
    """What the texts show, [N] each: kind, reasoning asked for, third and eighth of the lengths."""
    kind_N = np.unique(data.datasets, return_inverse=True)[1]
    reasoning_N, bodies = zip(*map(_without_ending, data.queries), strict=True)
    length_N = np.array([len(body) for body in bodies])
    rank_N = np.empty(N)
    for k in range(len(KINDS)):
        at = np.flatnonzero(kind_N == k)
        rank_N[at] = np.argsort(np.argsort(length_N[at], kind="stable")) / len(at)
    return kind_N, np.array(reasoning_N), (3 * rank_N).astype(int), (8 * rank_N).astype(int)


def _without_ending(query):
    """(the reasoning asked for, the question without the request to explain or be brief)."""
    for asked, endings in REASONING.items():
        for ending in filter(None, endings):
            if query.endswith(ending):
                return asked, query.removesuffix(ending).rstrip()
    return 0, query


def _mean_by_bin(p_NM, bin_N):
    count_B = np.bincount(bin_N)
    return (
        np.stack([np.bincount(bin_N, p_M) for p_M in p_NM.T], 1) / np.maximum(count_B, 1)[:, None]
    )


def _share_of_headroom(p_NM, *features):
    """Headroom captured by the best target of each bin, chosen on one half, judged on the other."""
    bin_N = np.unique(np.stack(features, 1), axis=0, return_inverse=True)[1].ravel()
    fit, held = p_NM[::2], p_NM[1::2]
    choice_B = _mean_by_bin(fit, bin_N[::2]).argmax(1)
    gained = np.take_along_axis(held, choice_B[bin_N[1::2], None], 1).mean()
    single = held[:, fit.mean(0).argmax()].mean()
    return (gained - single) / (held.max(1).mean() - single)


def test_the_best_possible_router_is_eight_points_above_the_best_single_target(data):
    p_NM = data.p_NM.astype(np.float64)
    assert p_NM.max(1).mean() - p_NM.mean(0).max() >= 0.08


def test_knowing_the_skill_is_not_enough_but_reading_the_text_is(data, read):
    p_NM = data.p_NM.astype(np.float64)
    kind_N, reasoning_N, _, length_N = read
    skill_only = _share_of_headroom(p_NM, kind_N)
    readable = _share_of_headroom(p_NM, kind_N, reasoning_N, length_N)
    assert 0.1 <= skill_only <= 0.60
    assert readable >= 0.80
    # Both readable features are needed: neither stands in for the other.
    for one in (reasoning_N, length_N):
        assert skill_only + 0.1 <= _share_of_headroom(p_NM, kind_N, one) <= readable - 0.05
    # And part of the difficulty cannot be read at all: questions of one design differ in p.
    assert readable <= 0.99
    assert len(np.unique(p_NM, axis=0)) > N / 2


def test_no_target_is_best_everywhere_and_each_somewhere(data):
    share_M = np.bincount(data.p_NM.argmax(1), minlength=len(data.targets)) / N
    assert share_M.max() <= 0.4
    assert share_M.min() > 0


def test_longer_questions_of_a_kind_are_harder(data, read):
    kind_N, _, third_N, _ = read
    p_KT = _mean_by_bin(data.p_NM, kind_N * 3 + third_N).mean(1).reshape(len(KINDS), 3)
    assert (np.diff(p_KT, axis=1) < -0.05).all(), dict(zip(sorted(KINDS), p_KT, strict=True))


def test_response_curves_cross_within_every_skill(data, read):
    kind_N, reasoning_N, third_N, _ = read
    p_KTM = _mean_by_bin(data.p_NM, kind_N * 3 + third_N).reshape(len(KINDS), 3, -1)
    best_KT = p_KTM.argmax(2)
    assert (best_KT[:, 0] != best_KT[:, 2]).sum() >= 0.8 * len(KINDS)
    # Two curves cross where one target is clearly better on easy and clearly worse on hard ones.
    lead_KMM = p_KTM[:, :, :, None] - p_KTM[:, :, None, :]
    crossing_K = ((lead_KMM[:, 0] > 0.05) & (lead_KMM[:, 2] < -0.05)).any((1, 2))
    assert crossing_K.all()
    # Room for thought changes the best target too.
    best_KR = (
        _mean_by_bin(data.p_NM, kind_N * 3 + reasoning_N + 1).reshape(len(KINDS), 3, -1).argmax(2)
    )
    assert (best_KR[:, 0] != best_KR[:, 2]).sum() >= 0.8 * len(KINDS)


def test_targets_run_from_cheap_to_dear(data):
    assert len(data.targets) >= 6
    assert (data.prices_M2 > 0).all()
    assert (data.prices_M2[:, 1] >= data.prices_M2[:, 0]).all()
    assert (np.diff(data.prices_M2[:, 0]) > 0).all()
    assert data.prices_M2[-1, 1] >= 50 * data.prices_M2[0, 1]


def test_same_seed_same_data_other_seed_other_data():
    one, again, other = simulate(500, seed=3), simulate(500, seed=3), simulate(500, seed=4)
    for name in ("ids", "queries", "targets", "datasets", "groups"):
        assert getattr(one, name) == getattr(again, name), name
    for name in ("y_NM", "p_NM", "output_tokens_NM", "prices_M2"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name), err_msg=name)
    assert not set(one.ids) & set(other.ids)
    assert len(set(one.queries) & set(other.queries)) < 25
    assert (one.p_NM != other.p_NM).mean() > 0.9
    assert (one.y_NM != other.y_NM).any()


def test_confidences_tell_right_answers_as_well_as_asked_and_change_nothing_else():
    plain, sure, blind = (simulate(3000, 1, skill) for skill in (None, 0.8, 0.5))
    assert plain.confidences_NM is None
    for name in ("queries", "y_NM", "p_NM", "output_tokens_NM"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(sure, name), err_msg=name)
    for data, skill in ((sure, 0.8), (blind, 0.5)):
        assert ((data.confidences_NM >= 0) & (data.confidences_NM <= 1)).all()
        auc_M = [roc_auc(c, y) for c, y in zip(data.confidences_NM.T, data.y_NM.T, strict=True)]
        np.testing.assert_allclose(auc_M, skill, atol=0.05)
    certain = simulate(20, 1, 1.0)
    np.testing.assert_array_equal(certain.confidences_NM, certain.y_NM)
    with pytest.raises(ValueError, match="confidence_skill.*0.5 to 1, got 0.3"):
        simulate(20, 1, 0.3)


@pytest.mark.parametrize("n", (1, 2, 7))
def test_few_rows(n):
    assert len(simulate(n)) == n


@pytest.mark.parametrize("n", (0, -3))
def test_no_rows_are_refused(n):
    with pytest.raises(ValueError, match="n: expected at least 1 query"):
        simulate(n)


def test_outcomes_are_drawn_from_the_true_probabilities(data):
    assert set(np.unique(data.y_NM)) == {0, 1}
    assert ((data.p_NM > 0) & (data.p_NM < 1)).all()
    y_NM, p_NM = data.y_NM.astype(np.float64), data.p_NM.astype(np.float64)
    for m, target in enumerate(data.targets):
        # Ten bins of equal size each, so that a slope that is off shows up as well as a mean.
        for at in np.array_split(np.argsort(p_NM[:, m]), 10):
            p = p_NM[at, m]
            z = (y_NM[at, m] - p).sum() / np.sqrt((p * (1 - p)).sum())
            assert abs(z) < 4.5, f"{target}: z = {z:.1f} at p about {p.mean():.2f}"
    # Given the probabilities, targets err independently of each other.
    residual_NM = (y_NM - p_NM) / np.sqrt(p_NM * (1 - p_NM))
    correlation_MM = residual_NM.T @ residual_NM / N
    off_diagonal = correlation_MM[~np.eye(len(correlation_MM), dtype=bool)]
    assert np.abs(off_diagonal).max() < 4.5 / np.sqrt(N)


def test_output_tokens_are_whole_positive_and_grow_with_the_difficulty(data, read):
    tokens_NM = data.output_tokens_NM
    assert tokens_NM.dtype == np.float32
    assert (tokens_NM >= 1).all()
    assert (tokens_NM == np.round(tokens_NM)).all()
    kind_N, reasoning_N, third_N, _ = read
    for feature_N in (third_N, reasoning_N + 1):
        log_KTM = _mean_by_bin(np.log(tokens_NM), kind_N * 3 + feature_N).reshape(len(KINDS), 3, -1)
        assert (np.diff(log_KTM, axis=1) > 0).all()
    # Skew of a lognormal: the mean lies above the median.
    assert (tokens_NM.mean(0) > np.median(tokens_NM, 0)).all()


def test_texts_are_distinct_and_equal_ones_share_a_group(data):
    few = simulate(5000)
    assert len(set(few.queries)) > 0.9 * 5000
    assert len(set(data.groups)) == len(set(map(normalised, data.queries)))
    group_of = dict(zip(data.queries, data.groups, strict=True))
    assert all(group_of[q] == g for q, g in zip(data.queries, data.groups, strict=True))


def test_every_kind_is_there_in_equal_parts(data):
    names, counts = np.unique(data.datasets, return_counts=True)
    assert sorted(names) == sorted(KINDS)
    assert len(KINDS) >= 8
    assert np.abs(counts - N / len(KINDS)).max() < 5 * np.sqrt(N / len(KINDS))


def test_questions_are_well_formed(data):
    for kind, query in zip(data.datasets, data.queries, strict=True):
        _, body = _without_ending(query)
        assert query == query.strip()
        if kind == "code":  # Braces and indents belong to a program; that it runs is tested below.
            assert re.search(r"[.?!)]$", query), query
            continue
        assert re.search(r"[.?!]$", query), query
        assert not re.search(r"[{}\[\]]|  | [.,;]|\b(nan|inf)\b|\bNone\b(?! of the)", body), query
        assert kind == "tables" or re.match(r"[A-Z0-9]", body), query


def test_every_kind_has_several_phrasings(data):
    for kind in KINDS:
        shapes = {
            re.sub(r"[\d.:]+", "#", query).split("#")[0]
            for name, query in zip(data.datasets, data.queries, strict=True)
            if name == kind
        }
        assert len(shapes) >= 8, kind


def test_every_program_runs_and_prints(data):
    bodies = (
        _without_ending(query)[1]
        for kind, query in zip(data.datasets, data.queries, strict=True)
        if kind == "code"
    )
    programs = dict.fromkeys(body.split("\n\n", 1)[1] for body in bodies)
    for program in list(programs)[:400]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program, {"__name__": "__main__"})
        assert printed.getvalue().strip(), program


def test_fifty_thousand_rows_in_five_seconds_of_one_core():
    assert _seconds(50_000) < 5


@pytest.mark.slow
def test_a_million_rows_in_a_minute_of_one_core():
    assert _seconds(1_000_000) < 60


def _seconds(n):
    """Processor time, which other work on the machine does not stretch."""
    start = time.process_time()
    simulate(n, seed=1)
    return time.process_time() - start
