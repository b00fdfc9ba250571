"""The fields of a config.json that several families have, read alike."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from routerjax.encoder.families.config import FULL_ATTENTION, EncoderConfig
from routerjax.encoder.families.rope import (
    DynamicRope,
    LinearRope,
    Llama3Rope,
    LongRope,
    ProportionalRope,
    Rope,
    Scaling,
    YarnRope,
    yarn_attention_factor,
)

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
_ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


# Fields that no family leaves at 0, and the most that any number may be: of layers, and else.
_COUNTS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "n_layers",
    "n_heads",
    "dim",
)
_MOST_LAYERS, _MOST, _MOST_FLOAT32 = 2048, 2**40, 3.4e38


def check_numbers(raw: dict[str, Any], source: str) -> None:
    """Refuses a config.json whose numbers are of no model, before anything is made by them.

    Args:
      raw: The parsed file, or an object in it.
      source: Where it came from, for errors.

    Raises:
      ValueError: A count that is no whole number from 1 up, or one beyond any model's; a number
        that is not finite in float32, as which models compute with it.
    """
    for name, value in raw.items():
        if isinstance(value, dict):
            check_numbers(value, source)
            continue
        if isinstance(value, float) and not abs(value) <= _MOST_FLOAT32:
            raise ValueError(f"{source}: {name}: expected a finite float32 number, got {value!r}")
        if value is None or isinstance(value, list):  # Of each layer its own.
            continue
        least, most = -_MOST, _MOST_LAYERS if "layers" in name else _MOST
        whole = isinstance(value, int) and not isinstance(value, bool)
        if name in _COUNTS:
            least, fits = 1, whole and 1 <= value <= most
        else:
            fits = not whole or least <= value <= most
        if not fits:
            # Of an integer of thousands of digits Python refuses to make a text.
            given = f"{value!r:.80}" if not whole or abs(value) < 2**64 else "a far larger number"
            raise ValueError(
                f"{source}: {name}: expected a whole number from {least} to {most}, got {given}"
            )


class Fields:
    """A config.json whose missing fields raise with the file's name."""

    def __init__(self, raw: dict[str, Any], source: str):
        self.raw, self.source = raw, source

    def __getitem__(self, name: str) -> Any:
        value = self.raw.get(name)
        if value is None:
            raise ValueError(f"{self.source}: the field {name!r} is missing")
        return value

    def get(self, name: str, default: Any) -> Any:
        """The field, or the default where it is absent or null."""
        value = self.raw.get(name)
        return default if value is None else value

    def refuse(self, problem: str) -> ValueError:
        """The error that names the file and the problem."""
        return ValueError(f"{self.source}: {problem}")

    def forbid(self, name: str) -> None:
        """Raises if the switch is on."""
        if self.get(name, False):
            raise self.refuse(f"{name}: {self.raw[name]!r} is not supported")


def text_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The text model's fields. As in Hugging Face, it inherits none from the outer config."""
    nested = raw.get("text_config")
    if not isinstance(nested, dict):
        return raw
    return {"model_type": raw.get("model_type")} | nested


def head_width(c: Fields) -> int:
    """E, the width of a head: given, or the hidden width shared out."""
    n_heads = c["num_attention_heads"]
    if n_heads < 1:
        raise c.refuse(f"num_attention_heads: expected at least 1, got {n_heads}")
    return c.get("head_dim", c["hidden_size"] // n_heads)


def read_activation(c: Fields, field: str, default: str) -> str:
    """The feed-forward layer's activation, by our name."""
    name = c.get(field, default)
    known = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"}
    known |= dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu_tanh")
    if name not in known:
        raise c.refuse(f"{field} {name!r} is not supported, only {', '.join(sorted(known))}")
    return known[name]


def read_decoder(family: str, c: Fields, **different: Any) -> EncoderConfig:
    """What all decoders share, and what this one has different.

    With `is_causal: false` tokens see both ways, and a window reaches as far ahead as back: up to a
    distance of sliding_window, which a causal window keeps one short of.
    """
    if c.get("per_layer_config", None):
        raise c.refuse("layers of different shapes (per_layer_config) are not supported")
    shared = {
        "family": family,
        "n_layers": c["num_hidden_layers"],
        "width": c["hidden_size"],
        "n_heads": c["num_attention_heads"],
        "n_kv_heads": c.get("num_key_value_heads", c["num_attention_heads"]),
        "head_dim": head_width(c),
        "vocab_size": c["vocab_size"],
        "norm_eps": c.get("rms_norm_eps", 1e-6),
        "max_positions": c.get("max_position_embeddings", 2048),
        "tied": bool(c.get("tie_word_embeddings", False)),
        "last_normed": bool(c.get("tie_last_hidden_states", True)),
    }
    if "activation" not in different:
        shared["activation"] = read_activation(c, "hidden_act", "silu")
    if "ffn_width" not in different:
        shared["ffn_width"] = c["intermediate_size"]
    if "ropes" not in different:
        shared["ropes"] = (read_rope(c),)
    config = EncoderConfig(**(shared | different))
    if not c.get("is_causal", True):
        windows = tuple(w if w == FULL_ATTENTION else w + 1 for w in config.windows)
        config = dataclasses.replace(config, bidirectional=True, windows=windows)
    if isinstance(scaling := config.ropes[0].scaling, DynamicRope):
        # Its max_position_embeddings is the length from which the base begins to grow.
        longest = int(scaling.factor * config.max_positions)
        config = dataclasses.replace(config, max_positions=longest)
    return config


def attention_bias(c: Fields) -> dict[str, Any]:
    """The biases of the projections, in families with this switch."""
    # Families without this switch pass over it, and so does Hugging Face.
    bias = bool(c.get("attention_bias", False))
    return {"qkv_bias": bias, "out_bias": bias}


def layer_types(
    c: Fields, default: Sequence[str], known: Sequence[str] = (FULL, SLIDING)
) -> tuple[str, ...]:
    """[n_layers] "full_attention", "sliding_attention" or whatever else is known."""
    kinds = tuple(c.get("layer_types", default))
    n_layers = c["num_hidden_layers"]
    if len(kinds) != n_layers:
        raise c.refuse(f"layer_types has {len(kinds)} entries for {n_layers} layers")
    if unknown := set(kinds) - set(known):
        raise c.refuse(f"layer_types has {', '.join(map(repr, sorted(unknown)))}, not supported")
    return kinds


def windows_of(kinds: Sequence[str], window: int) -> tuple[int, ...]:
    """[n_layers] the window of every layer that slides."""
    return tuple(window if kind == SLIDING else FULL_ATTENTION for kind in kinds)


def one_window(c: Fields) -> tuple[int, ...]:
    """[n_layers] sliding_window, the same for all layers."""
    return (c.get("sliding_window", 0) or FULL_ATTENTION,) * c["num_hidden_layers"]


def read_rope(
    c: Fields,
    theta: float = 10000.0,
    aliases: dict[str, str] | None = None,
    partial: bool = False,
    share: float = 1.0,
    interleaved: bool = False,
) -> Rope:
    """The one rotary table of a model.

    Args:
      c: transformers 5 writes rope_parameters; before it there were rope_theta and rope_scaling.
      theta: The family's default.
      aliases: Further names of rotary types.
      partial: Whether the family lets the last channels of a head stay.
      share: The family's default of a head's channels that turn.
      interleaved: As in `Rope`.
    """
    table = c.get("rope_scaling", None) or c.get("rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in table.values()):
        raise c.refuse("rotary embeddings that differ between layers are not supported")
    # Hugging Face's order: outside the table, inside it, the model's own context length.
    original = c.get("original_max_position_embeddings", None)
    rope = {"rope_theta": c.get("rope_theta", theta)} | _present(table)
    if original is not None:
        rope["original_max_position_embeddings"] = original
    rope.setdefault("partial_rotary_factor", c.get("partial_rotary_factor", share))
    return dataclasses.replace(_rope(c, rope, aliases or {}, partial), interleaved=interleaved)


def read_layer_ropes(
    c: Fields,
    kinds: Sequence[str],
    thetas: dict[str, tuple[str, float]],
    scaled: Sequence[str],
    proportional: bool = False,
) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
    """One rotary table for layers that see everything, one for those that slide.

    Args:
      c: transformers 5 writes rope_parameters by layer type; before it there was a field for each
        theta, and rope_scaling.
      kinds: [n_layers] layer types.
      thetas: Layer type to the older field and its default.
      scaled: The layer types that the older rope_scaling concerned.
      proportional: Whether the family knows the rotary type of that name.

    Returns:
      The tables that some layer uses, and [n_layers] which one is whose.
    """
    table = c.get("rope_parameters", None) or {}
    if table and not set(table) <= set(thetas):
        raise c.refuse(f"rope_parameters: expected a table by layer type, got {sorted(table)}")
    used = [kind for kind in (FULL, SLIDING) if kind in kinds]
    ropes = []
    for kind in used:
        field, default = thetas[kind]
        older = (c.get("rope_scaling", None) or {}) if kind in scaled else {}
        rope = {"rope_theta": c.get(field, default)} | _present(table.get(kind) or older)
        if rope.get("truncate") is False:
            raise c.refuse("rope_parameters by layer type with truncate: false is not supported")
        ropes.append(_rope(c, rope, {}, partial=False, proportional=proportional))
    return tuple(ropes), tuple(used.index(kind) for kind in kinds)


def _present(table: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if value is not None}


def _rope(
    c: Fields,
    rope: dict[str, Any],
    aliases: dict[str, str],
    partial: bool,
    proportional: bool = False,
) -> Rope:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = aliases.get(kind, kind)
    if kind == "proportional" and proportional:
        width, share = head_width(c), float(rope.get("partial_rotary_factor", 1.0))
        turning = ProportionalRope(int(share * width // 2), float(rope.get("factor", 1.0)))
        return Rope(float(rope["rope_theta"]), width, turning)
    if kind not in _ROPES:
        raise c.refuse(f"rope_type {kind!r} is not supported, only {', '.join(map(repr, _ROPES))}")
    share = float(rope.get("partial_rotary_factor", 1.0))
    if share != 1.0 and not partial:
        raise c.refuse("partial rotary embeddings (partial_rotary_factor) are not supported")
    width = int(head_width(c) * share)
    try:
        scaling = _scaling(c, kind, rope, width)
    except KeyError as error:
        raise c.refuse(f"the {kind} rope scaling lacks {error}") from error
    return Rope(float(rope["rope_theta"]), width, scaling)


def _scaling(c: Fields, kind: str, rope: dict[str, Any], width: int) -> Scaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return LinearRope(float(rope["factor"]))
    longest = int(c["max_position_embeddings"])
    if kind == "dynamic":
        return DynamicRope(float(rope["factor"]), longest)
    original = int(rope.get("original_max_position_embeddings") or longest)
    if kind == "llama3":
        factor, low, high = (
            float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")
        )
        return Llama3Rope(factor, low, high, original)
    factor = float(rope.get("factor") or longest / original)
    given = rope.get("attention_factor")
    if kind == "yarn":
        over, under = rope.get("mscale"), rope.get("mscale_all_dim")
        if given is None and over and under:
            given = yarn_attention_factor(factor, over) / yarn_attention_factor(factor, under)
        return YarnRope(
            factor,
            original,
            float(rope.get("beta_fast") or 32),
            float(rope.get("beta_slow") or 1),
            yarn_attention_factor(factor) if given is None else float(given),
            rope.get("truncate", True),
        )
    if given is None:
        given = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    divisors = [tuple(map(float, rope[name])) for name in ("short_factor", "long_factor")]
    if {len(each) for each in divisors} != {width // 2}:
        raise c.refuse(
            f"longrope: short_factor and long_factor have {[len(each) for each in divisors]} "
            f"entries for {width // 2} pairs of rotated channels"
        )
    return LongRope(divisors[0], divisors[1], original, float(given))
