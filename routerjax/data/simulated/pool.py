"""The seven simulated targets: prices, abilities and lengths of answers."""

import dataclasses
from collections.abc import Mapping

# P(correct) of an answer that is only guessed.
GUESSING = 0.02

# Log of how long answers to each skill are, relative to the target's usual length.
SKILLS: Mapping[str, float] = {
    "arithmetic": -0.2,
    "units": 0.0,
    "sequences": 0.1,
    "word_problems": 0.2,
    "dates": 0.0,
    "strings": -0.3,
    "sorting": -0.2,
    "logic": 0.3,
    "code": 0.1,
    "tables": 0.2,
}


@dataclasses.dataclass(frozen=True)
class SimulatedTarget:
    """A target of the simulated pool.

    Attributes:
      name: Invented.
      input_price: USD per 1M tokens.
      output_price: USD per 1M tokens.
      ability: theta, the difficulty at which it answers half of the questions correctly; levels
        have difficulties from -1.5 to 1.5.
      discrimination: a, how steeply its success falls with difficulty. A steep target answers easy
        questions almost surely and hard ones hardly ever; a flat one errs on both.
      reasoning: f, added to its logit where the question asks for step-by-step reasoning, and
        subtracted where it asks for the answer alone.
      output_tokens: Median length of its answers.
      skills: delta, added to its ability by skill.
    """

    name: str
    input_price: float
    output_price: float
    ability: float
    discrimination: float
    reasoning: float
    output_tokens: int
    skills: Mapping[str, float]


POOL = (
    SimulatedTarget("wren-1b", 0.02, 0.05, -0.6, 2.8, 0.3, 70,
                    {"dates": 0.4, "units": 0.3, "code": -0.4}),
    SimulatedTarget("robin-8b", 0.06, 0.12, 0.15, 2.4, -0.9, 110,
                    {"tables": 0.4, "sorting": 0.3, "strings": -0.5}),
    SimulatedTarget("magpie-14b-code", 0.12, 0.35, 0.2, 1.7, 0.6, 150,
                    {"code": 1.3, "sequences": 0.8, "sorting": 0.7, "dates": -0.7,
                     "word_problems": -0.5, "logic": -0.5}),
    SimulatedTarget("owl-32b-think", 0.40, 1.60, 1.2, 0.65, 1.1, 620,
                    {"arithmetic": 1.2, "logic": 0.8, "strings": -1.2, "tables": -0.6}),
    SimulatedTarget("heron-70b", 0.60, 0.90, 0.5, 1.9, -0.5, 170,
                    {"word_problems": 0.8, "dates": 0.6, "strings": 0.6, "arithmetic": -0.6}),
    SimulatedTarget("eagle-pro", 2.50, 10.0, 0.75, 1.6, -0.8, 210,
                    {"code": 0.3, "tables": 0.5, "units": 0.4, "logic": -0.3}),
    SimulatedTarget("condor-think-max", 5.0, 25.0, 1.9, 0.6, 0.6, 900,
                    {"strings": 1.0, "units": 0.5, "sorting": -0.9, "code": -0.6}),
)  # fmt: skip
