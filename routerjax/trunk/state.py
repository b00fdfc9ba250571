"""What the training loop moves: the members' state, settings and waves, the rows, the losses."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.net import member_graph

Array = jax.Array | np.ndarray


class State(NamedTuple):
    """The ensemble in training. Every leaf has a leading axis [K].

    Attributes:
      params: Parameters now.
      opt_state: Adam's moments.
      best_params: Parameters at the lowest validation loss.
      best_loss: [K] float32, that loss.
      best_epoch: [K] int32, its epoch, counted from 0; -1 before the first.
      waited: [K] int32 epochs since.
      stopped: [K] bool, whether the member has stopped early and is frozen.
      seed: [K] uint32.
      epoch: [K] int32 epochs done.
    """

    params: Any
    opt_state: Any
    best_params: Any
    best_loss: jax.Array
    best_epoch: jax.Array
    waited: jax.Array
    stopped: jax.Array
    seed: jax.Array
    epoch: jax.Array


class Setting(NamedTuple):
    """What members may differ in without being compiled anew. Every leaf has a leading axis [K].

    Attributes:
      learning_rate: [K] of Adam.
      l2: [K] coupled L2.
      dropout: [K, hidden layers] shares dropped; 0 exactly where `Program.drops` says so.
      source: [K] int32, which of the stacked features the member reads.
    """

    learning_rate: Array
    l2: Array
    dropout: Array
    source: Array


class Waves(NamedTuple):
    """Which members train, wave by wave.

    Attributes:
      slot_KJ: [K, J] int32 members; a wave smaller than J is filled up with K, which is none.
      size_K: [K] int32 which of `wave_sizes(J)` the wave is.
      n_waves: [] int32; the rows of slot_KJ from here on do not count.
    """

    slot_KJ: Array
    size_K: Array
    n_waves: Array


def wave_sizes(most: int, siblings_only: bool) -> tuple[int, ...]:
    """The sizes that waves of at most J members come in, largest first.

    Each is compiled. Where a wave is of siblings alone (one seed, one source), many are small, and
    one that is half empty would waste half: J, then powers of two. Where anyone fills it up, only
    the last one can be.
    """
    if not siblings_only:
        return (most,)
    return (most, *(2**i for i in reversed(range(most.bit_length())) if 2**i < most))


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled epoch depends on, but for the numbers of rows and members.

    Attributes:
      n_features: C.
      n_targets: M.
      drops: Whether anything is dropped, for each hidden layer.
      hidden, batch_size, patience, min_delta: As in TrunkConfig.
    """

    n_features: int
    hidden: tuple[int, ...]
    n_targets: int
    drops: tuple[bool, ...]
    batch_size: int
    patience: int
    min_delta: float

    @classmethod
    def of(cls, config: TrunkConfig, n_features: int, n_targets: int) -> "Program":
        """The program that trains as `config` says."""
        drops = tuple(share > 0 for share in config.dropout)
        return cls(
            n_features, config.hidden, n_targets, drops,
            config.batch_size, config.patience, config.min_delta,
        )  # fmt: skip

    @functools.cached_property
    def graphdef(self) -> nnx.GraphDef:
        """The graph of one member; the shares it drops come from its `Setting`."""
        return member_graph(self.n_features, self.hidden, self.n_targets, self.drops)[0]


class Data(NamedTuple):
    """Features and what to predict, on every device; a missing outcome is NaN.

    The leading axis of the features counts sources: features of one width, of the same rows, that
    different members read.
    """

    x_train_SNC: Array
    y_train_NM: Array
    x_val_SNC: Array
    y_val_NM: Array


class Losses(NamedTuple):
    """Mean binary cross-entropy over observed outcomes, in nats, of one epoch; [K] each.

    `train` is taken along the way, with dropout, as the parameters move.
    """

    train: jax.Array
    val: jax.Array
