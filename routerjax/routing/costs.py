"""What an answer costs: USD of input and output tokens, expected before it is written, and paid."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from routerjax.data.dataset import RoutingDataset

# Where no answer's length was recorded. It cancels from nothing: metrics say when it was assumed.
ASSUMED_OUTPUT_TOKENS = 256


@dataclasses.dataclass(frozen=True, eq=False)
class CostModel:
    """Prices, and the length of answer to expect of every target.

    Attributes:
      prices_M2: [M, 2] float64 USD per 1M (input, output) tokens; None where unknown.
      output_tokens_M: [M] float64, the median of the training answers (as published), or
        ASSUMED_OUTPUT_TOKENS.
      recorded_M: [M] bool, whether it is a median.
    """

    prices_M2: np.ndarray | None
    output_tokens_M: np.ndarray
    recorded_M: np.ndarray

    @classmethod
    def fit(cls, data: "RoutingDataset") -> "CostModel":
        """Prices of a data set, and the medians of its recorded answers.

        Args:
          data: The training rows.
        """
        length_M = np.full(len(data.targets), float(ASSUMED_OUTPUT_TOKENS))
        recorded_M = np.zeros(len(data.targets), bool)
        if data.output_tokens_NM is not None:
            for m, tokens_N in enumerate(data.output_tokens_NM.T):
                known = tokens_N[~np.isnan(tokens_N)]
                if len(known):
                    length_M[m], recorded_M[m] = float(np.median(known)), True
        return cls(data.prices_M2, length_M, recorded_M)

    def expected(self, input_tokens_N: np.ndarray) -> np.ndarray | None:
        """Cost as it can be known before the answer.

        Args:
          input_tokens_N: [N] tokens of the query, by the encoder's tokenizer.

        Returns:
          [N, M] USD per query, NaN for targets without a price; None without any prices.
        """
        return self._usd(input_tokens_N, self.output_tokens_M[None])

    def paid(
        self, input_tokens_N: np.ndarray, data: "RoutingDataset"
    ) -> tuple[np.ndarray | None, str | None]:
        """Cost of the answers that were given, and whether it is "recorded" or "assumed".

        Recorded only where the length of every answer with an outcome is; a mixture of both would
        compare targets on unlike grounds.

        Args:
          input_tokens_N: [N] tokens of the query.
          data: The rows evaluated.

        Returns:
          [N, M] USD per query (None without prices), and the basis.
        """
        if self.prices_M2 is None:
            return None, None
        lengths_NM = data.output_tokens_NM
        seen_NM = ~np.isnan(data.y_NM)
        if lengths_NM is None or np.isnan(lengths_NM[seen_NM]).any() or not self.recorded_M.all():
            return self.expected(input_tokens_N), "assumed"
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
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "CostModel":
        """What `to_json` wrote; a null price is an unknown one."""
        prices = value["prices_usd_per_1m_tokens"]
        return cls(
            None if prices is None else np.array(prices, np.float64),
            np.array(value["expected_output_tokens"], np.float64),
            np.array(value["output_tokens_recorded"], bool),
        )
