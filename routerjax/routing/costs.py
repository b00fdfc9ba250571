"""The cost of an answer in USD: of input and output tokens, expected beforehand and as paid."""

import dataclasses
from typing import Any

import jax
import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.routing.lengths import LengthHead

# Taken for the length of an answer where none was recorded; metrics say where it was assumed.
ASSUMED_OUTPUT_TOKENS = 256


@dataclasses.dataclass(frozen=True, eq=False)
class CostModel:
    """Prices, and the length of answer to expect of every target.

    Attributes:
      prices_M2: [M, 2] float64 USD per 1M (input, output) tokens; None where unknown.
      output_tokens_M: [M] float64, the median of the training answers (as published), or
        ASSUMED_OUTPUT_TOKENS.
      recorded_M: [M] bool, whether it is a median.
      head: Predicts lengths query by query, for the targets of `head.used_M`; None without.
    """

    prices_M2: np.ndarray | None
    output_tokens_M: np.ndarray
    recorded_M: np.ndarray
    head: LengthHead | None = None

    @classmethod
    def fit(
        cls,
        data: RoutingDataset,
        rows: RoutingDataset | None = None,
        x_NC: np.ndarray | None = None,
    ) -> "CostModel":
        """Prices of a data set, the medians of its recorded answers, and a head that beats them.

        Args:
          data: The training rows.
          rows: Those to fit the head on; None for no head.
          x_NC: [N, C] features of `rows`.
        """
        length_M = np.full(len(data.targets), float(ASSUMED_OUTPUT_TOKENS))
        recorded_M = np.zeros(len(data.targets), bool)
        if data.output_tokens_NM is not None:
            for m, tokens_N in enumerate(data.output_tokens_NM.T):
                known = tokens_N[~np.isnan(tokens_N)]
                if len(known):
                    length_M[m], recorded_M[m] = float(np.median(known)), True
        head = None
        if rows is not None and x_NC is not None and rows.output_tokens_NM is not None:
            head = LengthHead.fit(x_NC, rows.output_tokens_NM, rows.groups)
        return cls(data.prices_M2, length_M, recorded_M, head)

    def with_target(self, price: tuple[float, float] | None) -> "CostModel":
        """The costs with one more target of this price, of which no answer was recorded."""
        prices_M2 = self.prices_M2
        if prices_M2 is not None:
            row_2 = np.array([price or (np.nan, np.nan)], np.float64)
            prices_M2 = np.concatenate([prices_M2, row_2])
        return CostModel(
            prices_M2,
            np.append(self.output_tokens_M, float(ASSUMED_OUTPUT_TOKENS)),
            np.append(self.recorded_M, False),
            None if self.head is None else self.head.with_unused_target(),
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """[M] source of each target's expected length: "head", "median" or "assumed"."""
        used_M = np.zeros(len(self.recorded_M), bool) if self.head is None else self.head.used_M
        return tuple(
            "head" if used else "median" if recorded else "assumed"
            for used, recorded in zip(used_M, self.recorded_M, strict=True)
        )

    def lengths(self, n: int, x_NC: np.ndarray | jax.Array | None = None) -> np.ndarray:
        """[n, M] output tokens to expect of n queries; features and errors as in `expected`."""
        length_NM = np.tile(self.output_tokens_M[None], (n, 1))
        if self.head is None or not self.head.used_M.any():
            return length_NM
        if x_NC is None or len(x_NC) != n:
            raise ValueError(
                f"x_NC: lengths of answers are predicted from the features of each query, expected "
                f"{n} rows, got {None if x_NC is None else x_NC.shape}"
            )
        return np.where(self.head.used_M[None], self.head.expected(x_NC), length_NM)

    def expected(
        self, input_tokens_N: np.ndarray, x_NC: np.ndarray | jax.Array | None = None
    ) -> np.ndarray | None:
        """[N, M] USD per query as known before the answer; NaN without a price, None without any.

        Args:
          input_tokens_N: [N] tokens of the query, by the encoder's tokenizer.
          x_NC: [N, C] features of the query; needed, and waited for, only where a head predicts
            lengths from them.

        Raises:
          ValueError: A head is used and there are no features, or they have another shape.
        """
        return self._usd(input_tokens_N, self.lengths(len(input_tokens_N), x_NC))

    def paid(
        self, input_tokens_N: np.ndarray, data: RoutingDataset, x_NC: np.ndarray | None = None
    ) -> tuple[np.ndarray | None, str | None]:
        """Cost of the answers that were given, and whether it is "recorded" or "assumed".

        Recorded only where the length of every answer with an outcome is, and every target's were
        in training, where what is expected comes from; a mixture of both would compare targets on
        unlike grounds.

        Args:
          input_tokens_N: [N] tokens of the query.
          data: The rows evaluated.
          x_NC: [N, C] features of the queries, as for `expected`.

        Returns:
          [N, M] USD per query (None without prices), and the basis.
        """
        if self.prices_M2 is None:
            return None, None
        lengths_NM = data.output_tokens_NM
        seen_NM = ~np.isnan(data.y_NM)
        if lengths_NM is None or np.isnan(lengths_NM[seen_NM]).any() or not self.recorded_M.all():
            return self.expected(input_tokens_N, x_NC), "assumed"
        # Answers that were never given have no length; they enter no sum.
        known_NM = np.where(np.isnan(lengths_NM), self.output_tokens_M[None], lengths_NM)
        return self._usd(input_tokens_N, known_NM), "recorded"

    def _usd(self, input_tokens_N: np.ndarray, output_tokens: np.ndarray) -> np.ndarray | None:
        if self.prices_M2 is None:
            return None
        price_in_M, price_out_M = self.prices_M2.T
        tokens_N1 = np.asarray(input_tokens_N, np.float64)[:, None]
        return (tokens_N1 * price_in_M[None] + output_tokens * price_out_M[None]) / 1e6

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "prices_usd_per_1m_tokens": self.prices_M2,
            "expected_output_tokens": self.output_tokens_M,
            "output_tokens_recorded": self.recorded_M,
            "output_tokens_sources": self.sources,
            "held_out_log_error_of_head_and_median": None
            if self.head is None
            else self.head.error_M2,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that go with `to_json`."""
        return {} if self.head is None else self.head.arrays()

    @classmethod
    def from_json(
        cls, value: dict[str, Any], arrays: dict[str, np.ndarray] | None = None
    ) -> "CostModel":
        """What `to_json` and `arrays` wrote; a null price is an unknown one."""
        prices = value["prices_usd_per_1m_tokens"]
        return cls(
            None if prices is None else np.array(prices, np.float64),
            np.array(value["expected_output_tokens"], np.float64),
            np.array(value["output_tokens_recorded"], bool),
            LengthHead.from_arrays(arrays) if arrays else None,
        )
