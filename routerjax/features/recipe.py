"""Recipe: which hidden states, which poolings and how many components feed the trunk."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

from routerjax.encoder.layers import parse_layers

KINDS = ("all_layers", "layers", "top_fisher")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to read and how far to compress it; made by one of the class methods.

    Attributes:
      kind: One of KINDS.
      poolings: Names of poolings; every chosen layer is read in each of them.
      pca_dim: C, principal components of the standardised concatenation. Fewer where the training
        rows have a smaller rank.
      indices: For `layers`, the hidden-state indices, ascending; 0 is the embedding output.
      k: For `top_fisher`, the number of layers.

    Raises:
      ValueError: An argument is not what its description says.
    """

    kind: str
    poolings: tuple[str, ...] = ("mean",)
    pca_dim: int = 200
    indices: tuple[int, ...] = ()
    k: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        poolings = self.poolings
        if not poolings or not all(isinstance(name, str) and name for name in poolings):
            raise ValueError(
                f"pooling: expected a name or a tuple of names such as ('last', 'mean'), got "
                f"{poolings!r}"
            )
        if len(set(poolings)) < len(poolings):
            raise ValueError(f"pooling: each name counts once, got {poolings!r}")
        if self.pca_dim < 1:
            raise ValueError(f"pca_dim: expected at least 1 component, got {self.pca_dim}")
        if (self.kind == "layers") != bool(self.indices):
            raise ValueError(
                f"layers: recipe {self.kind!r} "
                + ("needs at least one hidden-state index" if self.kind == "layers" else
                   f"chooses its own, got {list(self.indices)}; use Recipe.layers([...])")
            )  # fmt: skip
        if self.indices and self.indices[0] < 0:
            raise ValueError(
                f"layers: hidden-state indices count up from 0 (the embedding output), got "
                f"{self.indices[0]}"
            )
        if (self.kind == "top_fisher") != (self.k > 0):
            raise ValueError(
                f"k: recipe {self.kind!r} "
                + ("needs at least 1 layer" if self.kind == "top_fisher" else "takes none")
                + f", got {self.k}"
            )

    @classmethod
    def all_layers(cls, pooling: str | Sequence[str] = "mean", pca_dim: int = 200) -> "Recipe":
        """Every hidden state of the store, concatenated: the published fixed features.

        Args:
          pooling: One name or several.
          pca_dim: Components kept.
        """
        return cls("all_layers", _names(pooling), _integer("pca_dim", pca_dim))

    @classmethod
    def layers(
        cls, indices: Sequence[int], pooling: str | Sequence[str] = "mean", pca_dim: int = 200
    ) -> "Recipe":
        """The given hidden states, concatenated.

        Args:
          indices: Hidden-state indices; 0 is the embedding output, i the output of block i.
          pooling: One name or several.
          pca_dim: Components kept.
        """
        given = tuple(_integer("layers", index) for index in indices)
        if len(set(given)) < len(given):
            raise ValueError(f"layers: each hidden state counts once, got {list(given)}")
        chosen = tuple(sorted(given))
        return cls("layers", _names(pooling), _integer("pca_dim", pca_dim), indices=chosen)

    @classmethod
    def top_fisher(
        cls, k: int, pooling: str | Sequence[str] = "mean", pca_dim: int = 200
    ) -> "Recipe":
        """The k hidden states with the largest Fisher separability on the training rows.

        They are ranked by J ("trace/standardised"), averaged over targets and over the poolings.

        Args:
          k: Number of layers.
          pooling: One name or several.
          pca_dim: Components kept.
        """
        return cls("top_fisher", _names(pooling), _integer("pca_dim", pca_dim), k=_integer("k", k))

    @classmethod
    def parse(
        cls, recipe: str, layers: str = "", pooling: str = "mean", pca_dim: int = 200
    ) -> "Recipe":
        """A recipe from command-line flags.

        Args:
          recipe: "all_layers", "layers" or "top_fisher:K".
          layers: For "layers", indices such as "3,4,6" or ranges such as "4-6" (both ends).
          pooling: Names, separated by commas.
          pca_dim: Components kept.

        Raises:
          ValueError: The text is none of these.
        """
        names = tuple(name.strip() for name in pooling.split(","))
        kind, _, count = recipe.partition(":")
        if kind != "layers" and layers.strip() not in ("", "all"):
            raise ValueError(f"--layers={layers} goes with --recipe=layers, got --recipe={recipe}")
        if recipe == "all_layers":
            return cls.all_layers(names, pca_dim)
        if recipe == "layers":
            indices = parse_layers(layers)
            if isinstance(indices, str):
                return cls.all_layers(names, pca_dim)
            return cls.layers(indices, names, pca_dim)
        if kind == "top_fisher" and count.isdecimal():
            return cls.top_fisher(int(count), names, pca_dim)
        raise ValueError(
            f"--recipe: expected all_layers, layers (with --layers=3,4,6) or top_fisher:K such as "
            f"top_fisher:4, got {recipe!r}"
        )

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON values; only the fields its kind has."""
        value: dict[str, Any] = {"kind": self.kind}
        if self.kind == "layers":
            value["indices"] = list(self.indices)
        if self.kind == "top_fisher":
            value["k"] = self.k
        return value | {"poolings": list(self.poolings), "pca_dim": self.pca_dim}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Recipe":
        """The recipe that `to_json` wrote.

        Raises:
          ValueError: A field is missing, unknown or wrong.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or "kind" not in value or set(value) - fields:
            raise ValueError(
                f"recipe: expected an object with 'kind' and fields out of {sorted(fields)}, got "
                f"{value!r}"
            )
        return cls(
            value["kind"],
            _names(value.get("poolings", ("mean",))),
            _integer("pca_dim", value.get("pca_dim", 200)),
            tuple(_integer("indices", index) for index in value.get("indices", ())),
            _integer("k", value.get("k", 0)),
        )


def _names(pooling: str | Sequence[str]) -> tuple[str, ...]:
    return (pooling,) if isinstance(pooling, str) else tuple(pooling)


def _integer(name: str, value: Any) -> int:
    """A plain int of an int or NumPy integer; `True` and 2.0 are neither."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected an integer, got {value!r}") from None
