"""TrunkConfig: the shape and the training of the ensemble; the defaults are the published ones."""

import dataclasses
import math
from typing import Any

TARGETS = ("binary", "score")


@dataclasses.dataclass(frozen=True)
class TrunkConfig:
    """How SharedTrunkNet is built and trained.

    Attributes:
      hidden: Widths of the hidden layers.
      dropout: Share of units dropped behind each hidden layer, in [0, 1).
      learning_rate: Of Adam.
      l2: Coupled L2: l2 x parameter is added to the gradient before Adam scales it.
      batch_size: Rows of a step, over all devices.
      epochs: At most this many.
      patience: A member stops after this many epochs without improvement.
      min_delta: By which the validation loss must fall to count as an improvement.
      seeds: One a member, 0 to 2^32 - 1; decides its initial weights, its order of rows and its
        dropout.
      keep: Members kept, those of the lowest validation loss.
      val_fraction: Share of rows held out for early stopping, the same rows for all members.
      split_seed: Of that split.
      kernel: Whether a kernel regression on the same features answers together with the ensemble
        (`trunk.kernel`).
      trunk_target: What the loss compares with: "binary" (score >= 0.5) or the "score" itself.
      checkpoint_every: Epochs between checkpoints.

    Raises:
      ValueError: A value out of its range.
    """

    hidden: tuple[int, ...] = (256, 128)
    dropout: tuple[float, ...] = (0.3, 0.2)
    learning_rate: float = 1e-3
    l2: float = 1e-4
    batch_size: int = 512
    epochs: int = 150
    patience: int = 15
    min_delta: float = 1e-4
    seeds: tuple[int, ...] = tuple(range(42, 52))
    keep: int = 5
    val_fraction: float = 0.15
    split_seed: int = 42
    kernel: bool = False
    trunk_target: str = "binary"
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "patience", "keep", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "l2", "min_delta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number from 0 up, got {value}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden: expected one or more positive widths, got {self.hidden}")
        if len(self.dropout) != len(self.hidden):
            raise ValueError(
                f"dropout: expected one share for each of the {len(self.hidden)} hidden layers, "
                f"got {self.dropout}"
            )
        if not all(0 <= share < 1 for share in self.dropout):
            raise ValueError(f"dropout: expected shares in [0, 1), got {self.dropout}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: expected different integers from 0 up, got {self.seeds}")
        if max(self.seeds) >= 2**32:
            raise ValueError(f"seeds: expected integers below 2^32, got {max(self.seeds)}")
        if self.keep > len(self.seeds):
            raise ValueError(f"keep: {self.keep} of {len(self.seeds)} members cannot be kept")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction: expected a share in (0, 1), got {self.val_fraction}")
        if self.trunk_target not in TARGETS:
            raise ValueError(f"trunk_target: expected one of {TARGETS}, got {self.trunk_target!r}")

    @classmethod
    def mixed(cls, **fields: Any) -> "TrunkConfig":
        """A wider network with more L2, and a kernel regression beside it.

        It trains about three times as long as the published one, and is meant for wider features:
        all layers, poolings last and mean, PCA 400 (docs/decisions.md, "Kernel").

        Args:
          **fields: In place of its own.
        """
        own: dict[str, Any] = dict(hidden=(512, 256), dropout=(0.4, 0.3), l2=1e-3, kernel=True)
        return cls(**(own | fields))

    @property
    def n_members(self) -> int:
        """K, the members trained."""
        return len(self.seeds)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TrunkConfig":
        """What `to_json` wrote."""
        fields: dict[str, Any] = {
            key: tuple(item) if isinstance(item, list) else item for key, item in value.items()
        }
        return cls(**fields)
