"""SharedTrunkNet and the ensemble of its trained members."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from routerjax.runtime.devices import in_flight, power_of_two
from routerjax.stats.numerics import HIGHEST
from routerjax.trunk.dropout import keep

# Rows are scored in chunks of powers of two up to this, so that few shapes are ever compiled.
_CHUNK_ROWS = 4096
# Up to this many rows, each member takes a copy of them: transposing the weights takes longer.
_FEW_ROWS = 32


def _torch_uniform(fan_in: int) -> Any:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for a linear layer, bias included."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class SharedTrunkNet(nnx.Module):
    """One MLP, one logit per target: Linear, ReLU, dropout for each hidden layer, then Linear.

    Args:
      n_features: C.
      hidden: Widths of the hidden layers.
      n_targets: M.
      dropout: Share of units dropped behind each hidden layer.
      rngs: For the initial weights.
    """

    def __init__(
        self,
        n_features: int,
        hidden: Sequence[int],
        n_targets: int,
        dropout: Sequence[float],
        rngs: nnx.Rngs,
    ):
        widths = (n_features, *hidden, n_targets)
        self.layers = nnx.List(
            nnx.Linear(
                fan_in,
                width,
                kernel_init=_torch_uniform(fan_in),
                bias_init=_torch_uniform(fan_in),
                precision=HIGHEST,
                rngs=rngs,
            )
            for fan_in, width in zip(widths, widths[1:], strict=False)
        )
        self.dropout = tuple(dropout)

    def __call__(
        self, x_RC: jax.Array, keys_R: jax.Array | None = None, dropout: Any = None
    ) -> jax.Array:
        """Logits [R, M] of rows.

        Args:
          x_RC: [R, C] features.
          keys_R: [R] uint32 a random word for each row's dropout, of `dropout.row_keys`; None for
            none.
          dropout: Shares in place of the module's own, which still say behind which layers nothing
            is dropped; may be traced.
        """
        x = x_RC
        shares = self.dropout if dropout is None else dropout
        keeps: list[jax.Array | None] = [None] * len(self.dropout)
        if keys_R is not None:
            widths = [
                layer.out_features if share else 0
                for layer, share in zip(self.layers, self.dropout, strict=False)
            ]
            keeps = keep(keys_R, widths, shares)
        for i, keep_RH in enumerate(keeps):
            x = jax.nn.relu(self.layers[i](x))
            if keep_RH is not None:
                x = jnp.where(keep_RH, x / (1 - shares[i]), 0.0)
        return self.layers[-1](x)


def member_graph(
    n_features: int, hidden: Sequence[int], n_targets: int, dropout: Sequence[float]
) -> tuple[nnx.GraphDef, nnx.State]:
    """The graph definition of one member and its abstract parameters; nothing is computed.

    Args: As in SharedTrunkNet.
    """

    def make() -> SharedTrunkNet:
        return SharedTrunkNet(n_features, hidden, n_targets, dropout, nnx.Rngs(0))

    return nnx.split(nnx.eval_shape(make))


def init_members(
    n_features: int, hidden: Sequence[int], n_targets: int, keys_K: jax.Array
) -> nnx.State:
    """Independent initial parameters of K members, of random keys [K], stacked on axis 0.

    Args: As in SharedTrunkNet.
    """

    def make(key: jax.Array) -> nnx.State:
        none = (0.0,) * len(hidden)
        net = SharedTrunkNet(n_features, hidden, n_targets, none, nnx.Rngs(params=key))
        return nnx.state(net, nnx.Param)

    return jax.vmap(make)(keys_K)


def by_name(params: nnx.State) -> dict[str, Any]:
    """The parameters of members as `Trunk.params` names them."""
    layers = nnx.to_pure_dict(params)["layers"]
    return {f"{i}.{leaf}": value for i, layer in layers.items() for leaf, value in layer.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Trunk:
    """The kept members of a trained ensemble.

    Attributes:
      n_features: C.
      hidden: Widths of the hidden layers.
      n_targets: M.
      params: Parameters by name ("0.kernel" ...), float32, stacked over the K members.
    """

    n_features: int
    hidden: tuple[int, ...]
    n_targets: int
    params: dict[str, np.ndarray]

    @property
    def n_members(self) -> int:
        """K."""
        return self.params["0.kernel"].shape[0]

    def predict_members(self, x_NC: np.ndarray) -> np.ndarray:
        """p_KNM [K, N, M] float32 P(correct) by every member, of features [N, C].

        Raises:
          ValueError: The features have another width.
        """
        if x_NC.ndim != 2 or x_NC.shape[1] != self.n_features:
            raise ValueError(
                f"x_NC: the trunk was trained on {self.n_features} features, got shape {x_NC.shape}"
            )

        def dispatched() -> Iterator[tuple[int, jax.Array]]:
            for start in range(0, len(x_NC), _CHUNK_ROWS):
                x_RC = np.asarray(x_NC[start : start + _CHUNK_ROWS], np.float32)
                n_rows = len(x_RC)
                missing = power_of_two(n_rows) - n_rows
                if missing:  # A single query has none.
                    x_RC = np.pad(x_RC, ((0, missing), (0, 0)))
                yield n_rows, self.dispatch(x_RC)

        chunks = [np.zeros((self.n_members, 0, self.n_targets), np.float32)]
        chunks += [np.asarray(p_KRM)[:, :n_rows] for n_rows, p_KRM in in_flight(dispatched())]
        return np.concatenate(chunks, axis=1)

    def dispatch(self, x_BC: np.ndarray | jax.Array) -> jax.Array:
        """p_KBM [K, B, M] as `predict_members`, of one batch: unchecked and without waiting."""
        return _score(self._shape, self._on_device, x_BC)

    def predict(self, x_NC: np.ndarray) -> np.ndarray:
        """p_NM [N, M] float32, the mean over members; arguments and errors as `predict_members`."""
        return self.predict_members(x_NC).mean(axis=0)

    @classmethod
    def from_state(cls, params: Any, members: Sequence[int]) -> "Trunk":
        """The ensemble of these members, best first, of the stacked parameters of a training."""
        chosen = np.array(members)
        return cls.from_params(
            {n: np.asarray(v, np.float32)[chosen] for n, v in by_name(params).items()}
        )

    @classmethod
    def from_params(cls, params: dict[str, np.ndarray]) -> "Trunk":
        """The ensemble of these `params`."""
        kernels = [params[f"{i}.kernel"] for i in range(len(params) // 2)]
        hidden = tuple(kernel.shape[2] for kernel in kernels[:-1])
        return cls(kernels[0].shape[1], hidden, kernels[-1].shape[2], params)

    @property
    def _shape(self) -> tuple[int, tuple[int, ...], int]:
        return self.n_features, self.hidden, self.n_targets

    @functools.cached_property
    def _on_device(self) -> dict[str, jax.Array]:
        """The parameters of all members, put there once."""
        return {name: jnp.asarray(value) for name, value in self.params.items()}


@functools.partial(jax.jit, static_argnames="shape")
def _score(
    shape: tuple[int, tuple[int, ...], int], params: dict[str, jax.Array], x_RC: jax.Array
) -> jax.Array:
    """`score_members` of rows."""
    if x_RC.shape[0] > _FEW_ROWS:
        return score_members(shape, params, x_RC)
    # For rows that members share, XLA makes one product of all and transposes the weights.
    return score_members(
        shape, params, jnp.broadcast_to(x_RC, (params["0.bias"].shape[0], *x_RC.shape))
    )


def score_members(
    shape: tuple[int, tuple[int, ...], int], params: Mapping[str, Any], x: jax.Array
) -> jax.Array:
    """Sigmoids of all members, [K, R, M], traceable for any number of rows.

    Args:
      shape: C, the widths of the hidden layers, and M.
      params: As `Trunk.params`.
      x: [R, C] features of the rows, or [K, R, C] of the rows of each member.
    """
    # The shape is static and the parameters are a dict: a graph would be hashed, and a State
    # flattened, in Python at every call.
    n_features, hidden, n_targets = shape
    graphdef, state = member_graph(n_features, hidden, n_targets, (0.0,) * len(hidden))
    layers: dict[int, dict[str, jax.Array]] = {}
    for name, value in params.items():
        layer, leaf = name.split(".")
        layers.setdefault(int(layer), {})[leaf] = value
    nnx.replace_by_pure_dict(state, {"layers": layers})

    def score(member: nnx.State, x_RC: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(nnx.merge(graphdef, member)(x_RC))

    return jax.vmap(score, (0, None if x.ndim == 2 else 0))(state, x)
