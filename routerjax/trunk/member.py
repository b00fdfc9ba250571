"""TrunkMember: one of many trunks, and which of them train together."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from routerjax.runtime.tuning import Tuning
from routerjax.trunk.state import Data, Program
from routerjax.trunk.step import VAL_ROWS

_COPIES = 5  # Of a member's parameters: see Tuning.state_bytes.


class TrunkMember(NamedTuple):
    """One network to be trained.

    Attributes:
      features: Name of the features it reads.
      hidden, dropout, learning_rate, l2: As in TrunkConfig.
      seed: Decides its initial weights, its order of rows and its dropout.
    """

    features: str
    hidden: tuple[int, ...]
    dropout: tuple[float, ...]
    learning_rate: float
    l2: float
    seed: int


def groups(
    members: Sequence[TrunkMember],
    left: Sequence[int],
    x_of: Mapping[str, np.ndarray],
    n_targets: int,
    devices: Sequence[jax.Device],
) -> Iterator[list[int]]:
    """Places of members that train together: of one shape, siblings side by side, within memory.

    Args:
      members: All members.
      left: Places of those to be trained.
      x_of: Features [N, C] by name.
      n_targets: M.
      devices: Which the members are split among.
    """

    def shape(k: int) -> tuple[Any, ...]:
        member = members[k]
        return x_of[member.features].shape[1], member.hidden, [s > 0 for s in member.dropout]

    def order(k: int) -> tuple[Any, ...]:
        return shape(k), members[k].features, members[k].seed, k

    most = Tuning.of(devices).state_bytes * len(devices)
    for (n_features, hidden, _), alike in itertools.groupby(sorted(left, key=order), shape):
        widths = (n_features, *hidden, n_targets)
        n_params = sum((a + 1) * b for a, b in itertools.pairwise(widths))
        at_once = max(len(devices), most // (4 * _COPIES * n_params))
        places = list(alike)
        for start in range(0, len(places), at_once):
            yield places[start : start + at_once]


def wave_of(
    members: Sequence[TrunkMember], per_device: int, tuning: Tuning, read_bytes: int
) -> int:
    """Members of a wave: the most that suit the device, in equal waves of those that may share.

    The members are those of a group, of which a device has `per_device`; each reads `read_bytes`.
    """
    if tuning.one_by_one:
        siblings = itertools.groupby(members, lambda m: (m.features, m.seed))
        largest = min(max(len(list(same)) for _, same in siblings), per_device)
    else:
        largest = per_device
    most = max(1, min(tuning.wave_members, tuning.wave_bytes // read_bytes))
    n_waves = -(-largest // most)
    return -(-largest // n_waves)


def bytes_read(program: Program, data: Data) -> int:
    """Bytes of the rows that a member reads at a time, and of its hidden layers for them."""
    n_rows = max(program.batch_size, min(len(data.y_val_NM), VAL_ROWS))
    return 4 * n_rows * (program.n_features + sum(program.hidden))
