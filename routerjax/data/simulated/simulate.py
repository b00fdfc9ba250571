"""Simulated queries, targets and outcomes whose true P(correct) is known.

For quickstarts, for tests that must know the best possible router, and for runs at scale. The
queries are real questions in ten skills and six levels; whether a target answers one correctly is
drawn from a model of item response theory, so that no LLM is needed.
"""

import dataclasses

import numpy as np
from scipy.special import expit, ndtri

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import group_rows
from routerjax.data.simulated import numeric, reasoning, verbal
from routerjax.data.simulated.draw import Draw
from routerjax.data.simulated.pool import GUESSING, POOL, SKILLS

KINDS = {
    "arithmetic": numeric.arithmetic,
    "units": numeric.units,
    "sequences": numeric.sequences,
    "word_problems": numeric.word_problems,
    "dates": verbal.dates,
    "strings": verbal.strings,
    "sorting": verbal.sorting,
    "logic": reasoning.logic,
    "code": reasoning.code,
    "tables": reasoning.tables,
}
N_LEVELS = 6

# How much reasoning a question asks for (-1, 0, 1), and the endings that say so.
REASONING = {
    -1: (
        "Reply with the final answer only.",
        "No explanation, just the answer.",
        "Keep it brief: give only the result.",
    ),
    0: ("", "Thanks!", "I need this today."),
    1: (
        "Explain your reasoning step by step before you give the answer.",
        "Think it through carefully, show all intermediate steps, and then state the answer.",
        "Please reason step by step and check the result at the end.",
    ),
}

# Standard deviation of the part of the difficulty that the text does not show.
HIDDEN = 0.4


@dataclasses.dataclass(frozen=True)
class Design:
    """The properties that N simulated queries are drawn with.

    Attributes:
      kind_N: [N] position in `KINDS`.
      level_N: [N] 0 (easy) to 5, readable off the text.
      reasoning_N: [N] -1 (asks for the answer alone), 0, 1 (asks for reasoning step by step),
        readable off the text.
      hidden_N: [N] further difficulty that the text does not show.
    """

    kind_N: np.ndarray
    level_N: np.ndarray
    reasoning_N: np.ndarray
    hidden_N: np.ndarray


def simulate(n: int, seed: int = 0, confidence_skill: float | None = None) -> RoutingDataset:
    """Draws n queries, independent of each other, and the answers of seven targets to them.

    With difficulty d_n = (level_n - 2.5) / 1.7 + hidden_n, hidden_n ~ N(0, 0.4^2), and r_n in -1,
    0, 1 the reasoning that the question asks for, target m answers correctly with

        p_nm = c + (1 - c) sigmoid(a_m (theta_m + delta_m,skill - d_n) + f_m r_n)

    (the three-parameter logistic model with a covariate). Discriminations a_m differ widely, so
    that the curves of two targets cross within a skill: which target is best depends on the
    difficulty, and a router must read it. Output lengths are lognormal and grow with the level and
    with the reasoning.

    Args:
      n: Number of queries, at least 1. A million take under a minute.
      seed: Same seed and n, same data.
      confidence_skill: Records how sure each target is of its answer, as sigmoid(s (y - 1/2) + e),
        e ~ N(0, 1), with s such that the AUC of the confidence for the answer y being right is this
        number: 0.5 says nothing, 1 all. None records none, and changes nothing else.

    Returns:
      A data set with `p_NM`, output tokens and prices; `datasets` names the skill.

    Raises:
      ValueError: n is below 1, or `confidence_skill` is not in [0.5, 1].

    References:
      Lord, Applications of Item Response Theory to Practical Testing Problems, 1980, chapter 2.

    Example:
      >>> data = simulate(100)
      >>> data.y_NM.shape
      (100, 7)
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 query, got {n}")
    if confidence_skill is not None and not 0.5 <= confidence_skill <= 1:
        raise ValueError(
            f"confidence_skill, an AUC: expected None or 0.5 to 1, got {confidence_skill!r}"
        )
    # Separate generators: a change to the texts leaves design and outcomes as they are.
    design_rng, text_rng, outcome_rng, confidence_rng = map(
        np.random.default_rng, np.random.SeedSequence(seed).spawn(4)
    )
    design = Design(
        kind_N=design_rng.integers(0, len(KINDS), n),
        level_N=design_rng.integers(0, N_LEVELS, n),
        reasoning_N=design_rng.integers(-1, 2, n),
        hidden_N=design_rng.normal(0, HIDDEN, n),
    )
    queries = _write_queries(design, text_rng)
    p_NM = _true_probability(design)
    y_NM = (outcome_rng.random(p_NM.shape, np.float32) < p_NM).astype(np.float32)
    confidences_NM = None
    if confidence_skill is not None:
        apart = np.sqrt(2) * ndtri(confidence_skill)
        confidences_NM = expit(apart * (y_NM - 0.5) + confidence_rng.normal(size=y_NM.shape))
    kinds = tuple(KINDS)
    return RoutingDataset(
        ids=tuple(f"sim-{seed}-{i}" for i in range(n)),
        queries=queries,
        targets=tuple(target.name for target in POOL),
        y_NM=y_NM,
        groups=group_rows(queries, [None] * n),
        datasets=tuple(kinds[k] for k in design.kind_N.tolist()),
        output_tokens_NM=_output_tokens(design, outcome_rng),
        prices_M2=np.array([[target.input_price, target.output_price] for target in POOL]),
        p_NM=p_NM,
        confidences_NM=None if confidences_NM is None else confidences_NM.astype(np.float32),
    )


def _write_queries(design: Design, rng: np.random.Generator) -> tuple[str, ...]:
    texts_N = np.empty(len(design.kind_N), object)
    for k, write in enumerate(KINDS.values()):
        for level in range(N_LEVELS):
            at = np.flatnonzero((design.kind_N == k) & (design.level_N == level))
            if len(at):
                texts_N[at] = write(Draw(rng, len(at)), level)
    endings = [rng.integers(0, len(texts), len(texts_N)) for texts in REASONING.values()]
    ending_N = np.select([design.reasoning_N == asked for asked in REASONING], endings)
    rows = zip(texts_N.tolist(), design.reasoning_N.tolist(), ending_N.tolist(), strict=True)
    return tuple(_with_ending(text, REASONING[asked][ending]) for text, asked, ending in rows)


def _with_ending(text: str, ending: str) -> str:
    if not ending:
        return text
    return f"{text}\n\n{ending}" if "\n" in text else f"{text} {ending}"


def _true_probability(design: Design) -> np.ndarray:
    """p_NM [N, M] float32, the formula of `simulate`."""
    difficulty_N = (design.level_N - 2.5) / 1.7 + design.hidden_N
    ability_KM = np.array([[target.ability + target.skills.get(kind, 0.0) for target in POOL]
                           for kind in KINDS])  # fmt: skip
    slope_M = np.array([target.discrimination for target in POOL])
    reasoning_M = np.array([target.reasoning for target in POOL])
    logit_NM = slope_M[None] * (ability_KM[design.kind_N] - difficulty_N[:, None])
    logit_NM += reasoning_M[None] * design.reasoning_N[:, None]
    return (GUESSING + (1 - GUESSING) / (1 + np.exp(-logit_NM))).astype(np.float32)


def _output_tokens(design: Design, rng: np.random.Generator) -> np.ndarray:
    """[N, M] float32 whole numbers, at least 1."""
    scale_M = np.log([target.output_tokens for target in POOL])
    words_K = np.array([SKILLS[kind] for kind in KINDS])
    mean_N = words_K[design.kind_N] + 0.22 * (design.level_N - 2.5) + 0.45 * design.reasoning_N
    noise_NM = rng.normal(0, 0.35, (len(mean_N), len(POOL)))
    lengths_NM = np.exp(scale_M[None] + mean_N[:, None] + noise_NM)
    return np.maximum(1, np.round(lengths_NM)).astype(np.float32)
