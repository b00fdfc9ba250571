"""Recipe: which hidden states, which poolings and how many components feed the trunk."""

import dataclasses
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# The fields of each kind beside `kind` itself.
_FIELDS = {
    "all_layers": ("poolings", "pca_dim"),
    "layers": ("indices", "poolings", "pca_dim"),
    "top_fisher": ("k", "poolings", "pca_dim"),
    "top_ridge": ("k", "poolings", "pca_dim"),
    "greedy": ("k", "poolings", "pca_dim"),
    "averaged_layers": ("indices", "poolings", "pca_dim"),
    "per_target": ("select", "poolings", "pca_dims"),
    "blocks": ("sites",),
}
KINDS = tuple(_FIELDS)
# Fields that have another name in JSON, where stores of results keep it.
_KEYS = {"sites": "blocks"}
# The J that each ranks by, a name of `probes`' tables.
RANKED_BY = {"fisher": "trace/standardised", "ridge": "ridge/standardised"}
SELECTS = ("cv_auc", *RANKED_BY)
# Widths a target can choose from, where it is not said.
WIDTHS = (50, 100, 150, 200)


class RecipeSite(NamedTuple):
    """One (encoder, layer, pooling) with a PCA of its own.

    Attributes:
      encoder: Its place among the stores, from 0.
      layer: Hidden-state index.
      pooling: Name.
      pca_dim: Components kept.
    """

    encoder: int
    layer: int
    pooling: str
    pca_dim: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to read and how far to compress it; made by one of the class methods.

    `per_target` and `greedy` leave a choice open: `routerjax.sweeps.select.resolve_recipe` makes a
    recipe of `blocks` or `layers` of them, on training rows; `fit_router` does it by itself.

    Attributes:
      kind: One of KINDS.
      poolings: Names of poolings; every chosen layer is read in each of them, by `per_target` in
        the one that suits the target.
      pca_dim: C, principal components of the standardised concatenation, with several stores of
        each store's. Fewer where the training rows have a smaller rank. Of `per_target` the largest
        of `pca_dims`, of `blocks` the sum over the sites.
      indices: For `layers` and `averaged_layers`, the hidden-state indices, ascending; 0 is the
        embedding output.
      k: For `top_fisher`, `top_ridge` and `greedy`, the number of layers.
      select: For `per_target`, by what a target chooses: one of SELECTS.
      pca_dims: For `per_target`, the widths to choose from, ascending.
      sites: For `blocks`, ascending; each (encoder, layer, pooling) once.

    Raises:
      ValueError: An argument is not what its description says.
    """

    kind: str
    poolings: tuple[str, ...] = ("mean",)
    pca_dim: int = 200
    indices: tuple[int, ...] = ()
    k: int = 0
    select: str = ""
    pca_dims: tuple[int, ...] = ()
    sites: tuple[RecipeSite, ...] = ()

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
        lowest = min((self.pca_dim, *self.pca_dims, *(site.pca_dim for site in self.sites)))
        if lowest < 1:
            raise ValueError(f"pca_dim: expected at least 1 component, got {lowest}")
        if ("indices" in _FIELDS[self.kind]) != bool(self.indices):
            raise ValueError(
                f"layers: recipe {self.kind!r} "
                + (f"chooses its own, got {list(self.indices)}; use Recipe.layers([...])"
                   if self.indices else "needs at least one hidden-state index")
            )  # fmt: skip
        numbers = (*self.indices, *(n for site in self.sites for n in site[:2]))
        if numbers and min(numbers) < 0:
            raise ValueError(
                f"layers: hidden-state indices count up from 0 (the embedding output), so do "
                f"encoders, got {min(numbers)}"
            )
        if ("k" in _FIELDS[self.kind]) != (self.k > 0):
            raise ValueError(
                f"k: recipe {self.kind!r} "
                + ("needs at least 1 layer" if "k" in _FIELDS[self.kind] else "takes none")
                + f", got {self.k}"
            )
        if self.select not in (SELECTS if self.kind == "per_target" else ("",)):
            raise ValueError(
                f"select: expected one of {', '.join(SELECTS)} for Recipe.per_target, and nothing "
                f"for others, got {self.select!r}"
            )
        for name in ("pca_dims", "sites"):
            value = getattr(self, name)
            if bool(value) != (name in _FIELDS[self.kind]):
                raise ValueError(
                    f"{name}: recipe {self.kind!r} "
                    + ("takes none" if value else "needs at least one")
                    + f", got {value!r}"
                )
            if tuple(sorted(set(value))) != value:
                raise ValueError(f"{name}: expected each once, ascending, got {value!r}")
        if self.pca_dims and self.pca_dim != self.pca_dims[-1]:
            raise ValueError(f"pca_dim: expected the largest of pca_dims, got {self.pca_dim}")
        if self.sites:
            once = len({site[:3] for site in self.sites}) == len(self.sites)
            if not once or (self.poolings, self.pca_dim) != _read_by(self.sites):
                raise ValueError("sites: use Recipe.of_sites, which says the rest by itself")

    @classmethod
    def all_layers(cls, pooling: str | Sequence[str] = "mean", pca_dim: int = 200) -> "Recipe":
        """Every hidden state of the store, concatenated: the published fixed features.

        With several stores each has a PCA of its own, and their features stand side by side.

        Args:
          pooling: One name or several.
          pca_dim: Components kept of each store.
        """
        return cls("all_layers", _names(pooling), _integer("pca_dim", pca_dim))

    @classmethod
    def layers(
        cls, indices: Sequence[int], pooling: str | Sequence[str] = "mean", pca_dim: int = 200
    ) -> "Recipe":
        """The given hidden states, concatenated; of several stores, each by itself.

        Args:
          indices: Hidden-state indices; 0 is the embedding output, i the output of block i.
          pooling: One name or several.
          pca_dim: Components kept of each store.
        """
        return cls(
            "layers", _names(pooling), _integer("pca_dim", pca_dim), indices=_indices(indices)
        )

    @classmethod
    def averaged_layers(
        cls, indices: Sequence[int], pooling: str | Sequence[str] = "mean", pca_dim: int = 200
    ) -> "Recipe":
        """The mean of the given hidden states, each standardised by itself.

        The mean is standardised and rotated as `layers` does it with the concatenation. It is what
        Switchyard's checkpoints can hold of several layers (`rj.export.switchyard`).

        Args:
          indices: Hidden-state indices; 0 is the embedding output, i the output of block i.
          pooling: One name or several; of several the means are concatenated.
          pca_dim: Components kept of each store.
        """
        chosen, dim = _indices(indices), _integer("pca_dim", pca_dim)
        return cls("averaged_layers", _names(pooling), dim, indices=chosen)

    @classmethod
    def top_fisher(
        cls, k: int, pooling: str | Sequence[str] = "mean", pca_dim: int = 200
    ) -> "Recipe":
        """The k hidden states with the largest Fisher separability on the training rows.

        They are ranked by J ("trace/standardised"), averaged over targets and over the poolings.

        Args:
          k: Number of layers; of several stores, of each.
          pooling: One name or several.
          pca_dim: Components kept of each store.
        """
        return cls("top_fisher", _names(pooling), _integer("pca_dim", pca_dim), k=_integer("k", k))

    @classmethod
    def top_ridge(
        cls, k: int, pooling: str | Sequence[str] = "mean", pca_dim: int = 200
    ) -> "Recipe":
        """As `top_fisher`, ranked by the ridge discriminant's J ("ridge/standardised").

        It finds the layers of decoders, which J by traces does not (docs/comparison.md); it takes
        the states' covariances, one pass more than their variances cost.

        Args:
          k: Number of layers; of several stores, of each.
          pooling: One name or several.
          pca_dim: Components kept of each store.
        """
        return cls("top_ridge", _names(pooling), _integer("pca_dim", pca_dim), k=_integer("k", k))

    @classmethod
    def greedy(cls, k: int, pooling: str | Sequence[str] = "mean", pca_dim: int = 200) -> "Recipe":
        """k hidden states by forward selection on the training rows.

        Each step adds the layer with which the concatenation, standardised and rotated as `layers`
        does it, reaches the highest cross-validated AUC of a logistic regression, averaged over
        targets. Ties go to the lower layer.

        Args:
          k: Number of layers.
          pooling: One name or several; each layer is read in all of them.
          pca_dim: Components kept.
        """
        return cls("greedy", _names(pooling), _integer("pca_dim", pca_dim), k=_integer("k", k))

    @classmethod
    def per_target(
        cls,
        select: str = "cv_auc",
        pooling: str | Sequence[str] = "mean",
        pca_dim: int | Sequence[int] = WIDTHS,
    ) -> "Recipe":
        """To each target its own (encoder, layer, pooling, width), side by side for the trunk.

        Args:
          select: "cv_auc", the highest cross-validated AUC of a logistic regression; "fisher" or
            "ridge", the largest J ("trace/standardised" or "ridge/standardised"), which says
            nothing about widths: the largest is taken.
          pooling: One name or several, of which each target takes one.
          pca_dim: One width or several, of which each target takes one.
        """
        given = pca_dim if isinstance(pca_dim, Iterable) else (pca_dim,)
        dims = tuple(sorted({_integer("pca_dim", dim) for dim in given}))
        if not dims:
            raise ValueError("pca_dim: expected a width or several, got none")
        return cls("per_target", _names(pooling), dims[-1], select=select, pca_dims=dims)

    @classmethod
    def of_sites(cls, sites: Iterable[tuple[int, int, str, int]]) -> "Recipe":
        """Single (encoder, layer, pooling), each with a PCA of its own, side by side.

        Args:
          sites: (encoder, layer, pooling, components), in any order. Those of equal encoder, layer
            and pooling are one, of the largest width: its leading components are the narrower ones.
        """
        widest: dict[tuple[int, int, str], int] = {}
        for encoder, layer, pooling, pca_dim in sites:
            key = (_integer("sites", encoder), _integer("sites", layer), pooling)
            widest[key] = max(widest.get(key, 0), _integer("pca_dim", pca_dim))
        chosen = tuple(sorted(RecipeSite(*key, dim) for key, dim in widest.items()))
        if not chosen:
            raise ValueError("sites: recipe 'blocks' needs at least one, got none")
        return cls("blocks", *_read_by(chosen), sites=chosen)

    def narrow(self, width: int) -> "Recipe":
        """The same with at most `width` components of each PCA."""
        if self.sites:
            return Recipe.of_sites(s._replace(pca_dim=min(s.pca_dim, width)) for s in self.sites)
        return dataclasses.replace(self, pca_dim=min(self.pca_dim, width))

    @property
    def by_outcomes(self) -> bool:
        """Whether what it reads is chosen by the outcomes of the rows it is fitted on."""
        return self.kind in ("top_fisher", "top_ridge", "greedy", "per_target")

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON values; only the fields its kind has."""
        value: dict[str, Any] = {"kind": self.kind}
        for name in _FIELDS[self.kind]:
            field = getattr(self, name)
            if name == "sites":
                field = [site._asdict() for site in field]
            value[_KEYS.get(name, name)] = list(field) if isinstance(field, tuple) else field
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Recipe":
        """The recipe that `to_json` wrote.

        Raises:
          ValueError: A field is missing, unknown or wrong.
        """
        fields = {_KEYS.get(field.name, field.name) for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or "kind" not in value or set(value) - fields:
            raise ValueError(
                f"recipe: expected an object with 'kind' and fields out of {sorted(fields)}, got "
                f"{value!r}"
            )
        if value["kind"] == "blocks":
            return cls.of_sites(RecipeSite(**site) for site in value["blocks"])
        poolings = _names(value.get("poolings", ("mean",)))
        if value["kind"] == "per_target":
            return cls.per_target(value["select"], poolings, value["pca_dims"])
        return cls(
            value["kind"],
            poolings,
            _integer("pca_dim", value.get("pca_dim", 200)),
            tuple(_integer("indices", index) for index in value.get("indices", ())),
            _integer("k", value.get("k", 0)),
        )


def _read_by(sites: tuple[RecipeSite, ...]) -> tuple[tuple[str, ...], int]:
    """The poolings that are read, and the sum of the sites' widths."""
    poolings = tuple(dict.fromkeys(site.pooling for site in sites))
    return poolings, sum(site.pca_dim for site in sites)


def _indices(indices: Sequence[int]) -> tuple[int, ...]:
    """Hidden-state indices, ascending, each once."""
    given = tuple(_integer("layers", index) for index in indices)
    if len(set(given)) < len(given):
        raise ValueError(f"layers: each hidden state counts once, got {list(given)}")
    return tuple(sorted(given))


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
