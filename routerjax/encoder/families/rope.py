"""Rotary positions: how fast each pair of channels turns, for every published stretch of them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearRope:
    """Every frequency divided by `factor` (position interpolation, arXiv 2306.15595)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's stretch of the rotary frequencies to longer contexts.

    Attributes:
      factor: How much slower the low frequencies turn.
      low_freq_factor: Wavelengths beyond original_max_positions / this are slowed by `factor`.
      high_freq_factor: Wavelengths below original_max_positions / this are kept.
      original_max_positions: Context length, in tokens, of the first training stage.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class DynamicRope:
    """NTK-aware base that grows with a prompt's own length beyond original_max_positions.

    theta grows by (factor * length / original_max_positions - (factor - 1)) ^ (W / (W - 2)).
    """

    factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class YarnRope:
    """YaRN (arXiv 2309.00071): slow pairs divided by `factor`, fast ones kept, a ramp between.

    Attributes:
      factor: How much slower the slow pairs turn.
      original_max_positions: Context length, in tokens, of the first training stage.
      beta_fast, beta_slow: Turns within that length from which a pair is kept, below which it is
        slowed.
      attention_factor: Multiplies the rotated channels of queries and keys.
      truncate: Whether the ramp's ends are rounded outwards to whole pairs.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class LongRope:
    """LongRoPE (arXiv 2402.13753): each pair has a divisor of its own, another one in long prompts.

    Attributes:
      short_factors, long_factors: [W / 2] divisors, for prompts up to original_max_positions tokens
        and beyond.
      original_max_positions: The longest prompt, in tokens, of the short divisors.
      attention_factor: Multiplies the rotated channels of queries and keys, whatever the length.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    attention_factor: float


@dataclasses.dataclass(frozen=True)
class ProportionalRope:
    """Only the first, fastest pairs of a whole head turn, and slower by a factor (Gemma 4).

    Attributes:
      n_turning: Pairs that turn.
      factor: How much slower they turn.
    """

    n_turning: int
    factor: float = 1.0


Scaling = ProportionalRope | LinearRope | Llama3Rope | DynamicRope | YarnRope | LongRope


@dataclasses.dataclass(frozen=True)
class Rope:
    """One table of rotary frequencies.

    Attributes:
      theta: Base: unscaled, pair e turns theta^(-2e/W) radians per position.
      width: W, channels of a head that turn: the first ones. The others stay.
      scaling: None, or how the frequencies are stretched.
      interleaved: Whether channels 2e and 2e + 1 are a pair (GLM), instead of e and e + W / 2.
    """

    theta: float
    width: int
    scaling: Scaling | None = None
    interleaved: bool = False

    @property
    def follows_length(self) -> bool:
        """Whether the frequencies of a prompt depend on its length."""
        match self.scaling:
            case LongRope(short_factors, long_factors):
                return short_factors != long_factors
            case DynamicRope():
                return True
        return False

    @property
    def attention_factor(self) -> float:
        """What the rotated channels of queries and keys are multiplied by."""
        return float(getattr(self.scaling, "attention_factor", 1.0))


def yarn_attention_factor(factor: float, scale: float = 1.0) -> float:
    """YaRN's temperature as a factor of queries and keys: 0.1 scale ln(factor) + 1, at least 1."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotary_frequencies(rope: Rope) -> np.ndarray:
    """Radians per position of each pair of channels, of a table that follows no length.

    NumPy, as these are constants of the model: an accelerator's power function has errors of its
    own, which a position of many thousands multiplies. Of a table that follows the prompt's length,
    those of the shortest prompts.

    Returns:
      [W / 2] float32.
    """
    exponents = np.arange(0, rope.width, 2, dtype=np.float32) / np.float32(rope.width)
    frequencies = np.float32(1) / np.float32(rope.theta) ** exponents
    match rope.scaling:
        case LinearRope(factor):
            return frequencies / np.float32(factor)
        case Llama3Rope(factor, low, high, original):
            turns = original * frequencies / np.float32(2 * np.pi)
            kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
            return kept * frequencies + (1 - kept) * frequencies / factor
        case YarnRope(factor):
            kept = _yarn_kept(rope, rope.scaling)
            return kept * frequencies + (1 - kept) * frequencies / np.float32(factor)
        case ProportionalRope(n_turning, factor):
            turning = np.arange(rope.width // 2) < n_turning
            return np.where(turning, frequencies / np.float32(factor), np.float32(0))
        case LongRope(short_factors):
            return frequencies / np.asarray(short_factors, np.float32)
    return frequencies


def _yarn_kept(rope: Rope, yarn: YarnRope) -> np.ndarray:
    """[W / 2] float32: 1 where a pair keeps its frequency, 0 where it is slowed by the factor."""

    def pair_of(turns: float) -> float:
        """The pair, not rounded, that turns so often within the original context."""
        wavelength = yarn.original_max_positions / (turns * 2 * math.pi)
        return rope.width * math.log(wavelength) / (2 * math.log(rope.theta))

    first, last = pair_of(yarn.beta_fast), pair_of(yarn.beta_slow)
    if yarn.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.width - 1)
    # A ramp between equal ends is a step, as steep here as in Hugging Face.
    span = last - first if last != first else 1e-3
    pairs = np.arange(rope.width // 2, dtype=np.float32)
    return 1 - np.clip((pairs - np.float32(first)) / np.float32(span), 0.0, 1.0)


def row_frequencies(rope: Rope, lengths_B: jax.Array) -> jax.Array:
    """Radians per position of each pair of channels, for every row by its own length.

    Batch mates and padding do not matter: Hugging Face gives these numbers to a row alone in its
    batch.

    Args:
      rope: Any table.
      lengths_B: [B] int32 real tokens of each row.

    Returns:
      [B, W / 2] float32, or [1, W / 2] where lengths do not matter.
    """
    known = jnp.asarray(rotary_frequencies(rope))[None]
    match rope.scaling:
        case LongRope(_, long_factors, original):
            plain = rotary_frequencies(dataclasses.replace(rope, scaling=None))[None]
            long = plain / np.asarray(long_factors, np.float32)[None]
            return jnp.where(lengths_B[:, None] > original, long, known)
        case DynamicRope(factor, original):
            lengths_B = jnp.maximum(lengths_B, original).astype(jnp.float32)
            growth_B = factor * lengths_B / original - (factor - 1)
            # theta^(-2e/W) comes from NumPy: only the growth, which is small, is raised here.
            pairs = np.arange(0, rope.width, 2, dtype=np.float32) / np.float32(rope.width - 2)
            return known * growth_B[:, None] ** -pairs[None]
    return known
