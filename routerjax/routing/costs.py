"""The cost of an answer in USD: of input and output tokens, expected beforehand and as paid.

What was paid is the recorded cost of an answer where there is one, else its recorded tokens times
the prices, else what was expected; `cost_basis` says which share of the answers is which.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.routing.lengths import LengthHead

# Taken for the length of an answer where none was recorded; metrics say where it was assumed.
ASSUMED_OUTPUT_TOKENS = 256


# How `cost_basis` begins where all answers are of one kind.
BASES = ("recorded cost", "recorded", "assumed")


@dataclasses.dataclass(frozen=True, eq=False)
class Bills:
    """What training rows recorded of prompts and costs, beside the lengths of answers.

    Attributes:
      extra_tokens_M: [M] median of recorded input tokens less the query's own (a few-shot prompt,
        the target's own tokenizer); 0 where none were recorded.
      cached_share_M: [M] share of the recorded input tokens that was cached; 0 likewise.
      cached_prices_M: [M] USD per 1M cached input tokens, NaN where unknown.
      cost_M: [M] mean recorded cost in USD, NaN where none was; expected of a target without a
        price.
    """

    extra_tokens_M: np.ndarray
    cached_share_M: np.ndarray
    cached_prices_M: np.ndarray
    cost_M: np.ndarray

    @classmethod
    def fit(cls, data: RoutingDataset, query_tokens_N: np.ndarray | None) -> "Bills | None":
        """Of training rows; None where they recorded nothing of the kind."""
        input_NM, cached_NM = data.input_tokens_NM, data.cached_input_tokens_NM
        if input_NM is None and data.costs_NM is None and data.cached_prices_M is None:
            return None
        m = len(data.targets)
        extra_M, share_M, cost_M = np.zeros(m), np.zeros(m), np.full(m, np.nan)
        for i in range(m):
            if input_NM is not None and query_tokens_N is not None:
                extra_N = input_NM[:, i] - np.asarray(query_tokens_N, np.float64)
                extra_M[i] = np.median(extra_N[~np.isnan(extra_N)]) if _any(extra_N) else 0.0
            if input_NM is not None and cached_NM is not None:
                both_N = ~np.isnan(input_NM[:, i] + cached_NM[:, i])
                total = input_NM[both_N, i].sum(dtype=np.float64)
                share_M[i] = cached_NM[both_N, i].sum(dtype=np.float64) / total if total else 0.0
            if data.costs_NM is not None and _any(data.costs_NM[:, i]):
                cost_M[i] = np.nanmean(data.costs_NM[:, i])
        cached_M = np.full(m, np.nan) if data.cached_prices_M is None else data.cached_prices_M
        return cls(extra_M, np.minimum(share_M, 1.0), cached_M, cost_M)

    def with_unrecorded_target(self) -> "Bills":
        """With one more target, of which nothing was recorded."""
        return Bills(
            np.append(self.extra_tokens_M, 0.0), np.append(self.cached_share_M, 0.0),
            np.append(self.cached_prices_M, np.nan), np.append(self.cost_M, np.nan),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Bills":
        """What `to_json` wrote."""
        return cls(**{name: np.array(column, np.float64) for name, column in value.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class CostModel:
    """Prices, and the length of answer to expect of every target.

    Attributes:
      prices_M2: [M, 2] float64 USD per 1M (input, output) tokens; None where unknown.
      output_tokens_M: [M] float64, the median of the training answers (as published), or
        ASSUMED_OUTPUT_TOKENS.
      recorded_M: [M] bool, whether it is a median.
      head: Predicts lengths query by query, for the targets of `head.used_M`; None without.
      bills: What was recorded of prompts and costs; None where nothing was.
    """

    prices_M2: np.ndarray | None
    output_tokens_M: np.ndarray
    recorded_M: np.ndarray
    head: LengthHead | None = None
    bills: Bills | None = None

    @classmethod
    def fit(
        cls,
        data: RoutingDataset,
        rows: RoutingDataset | None = None,
        x_NC: np.ndarray | None = None,
        query_tokens_N: np.ndarray | None = None,
    ) -> "CostModel":
        """Prices of a data set, the medians of its recorded answers, and a head that beats them.

        Args:
          data: The training rows.
          rows: Those to fit the head on; None for no head.
          x_NC: [N, C] features of `rows`.
          query_tokens_N: [N] tokens of the queries of `data`, by the encoder's tokenizer; None
            where recorded input tokens should not be compared with them.
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
        return cls(data.prices_M2, length_M, recorded_M, head, Bills.fit(data, query_tokens_N))

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
            None if self.bills is None else self.bills.with_unrecorded_target(),
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
        tokens_N1 = np.asarray(input_tokens_N, np.float64)[:, None]
        length_NM = self.lengths(len(tokens_N1), x_NC)
        if self.bills is None:
            return self._usd(tokens_N1, length_NM)
        input_NM = np.maximum(tokens_N1 + self.bills.extra_tokens_M[None], 0.0)
        cached_NM = input_NM * self.bills.cached_share_M[None]
        cost_NM = self._usd(input_NM, length_NM, cached_NM)
        mean_NM = np.broadcast_to(self.bills.cost_M[None], length_NM.shape)
        if cost_NM is None:
            return None if np.isnan(self.bills.cost_M).all() else np.array(mean_NM)
        return np.where(np.isnan(cost_NM), mean_NM, cost_NM)

    def paid(
        self, input_tokens_N: np.ndarray, data: RoutingDataset, x_NC: np.ndarray | None = None
    ) -> tuple[np.ndarray | None, str | None]:
        """Cost of the answers that were given, and what it is based on.

        Where no cost was recorded, recorded tokens count only where the length of every answer with
        an outcome is, and every target's were in training, where what is expected comes from: then
        the basis is "recorded", else all are expected ones, "assumed". Where any cost was recorded,
        each answer's counts as it is known, see `cost_basis`.

        Args:
          input_tokens_N: [N] tokens of the query; of an answer whose input tokens were recorded,
            those count.
          data: The rows evaluated.
          x_NC: [N, C] features of the queries, as for `expected`.

        Returns:
          [N, M] USD per query (None without prices and recorded costs), and the basis.
        """
        if self.prices_M2 is None and data.costs_NM is None:
            return None, None
        lengths_NM = data.output_tokens_NM
        seen_NM = ~np.isnan(data.y_NM)
        unknown = lengths_NM is None or np.isnan(lengths_NM[seen_NM]).any()
        if data.costs_NM is None and (unknown or not self.recorded_M.all()):
            return self.expected(input_tokens_N, x_NC), "assumed"
        cost_NM = None
        if lengths_NM is not None:
            tokens_NM = np.asarray(input_tokens_N, np.float64)[:, None]
            if data.input_tokens_NM is not None:
                tokens_NM = np.where(
                    np.isnan(data.input_tokens_NM), tokens_NM, data.input_tokens_NM
                )
            # Answers that were never given have no length; they enter no sum.
            if data.costs_NM is None:
                lengths_NM = np.where(np.isnan(lengths_NM), self.output_tokens_M[None], lengths_NM)
            cost_NM = self._usd(tokens_NM, lengths_NM, data.cached_input_tokens_NM)
        if data.costs_NM is None:
            return cost_NM, "recorded"
        paid_NM = np.array(data.costs_NM, np.float64)
        for other_NM in (cost_NM, self.expected(input_tokens_N, x_NC)):
            if other_NM is not None:
                paid_NM = np.where(np.isnan(paid_NM), other_NM, paid_NM)
        return paid_NM, cost_basis(data)

    def _usd(
        self, input_tokens: np.ndarray, output_tokens: np.ndarray, cached: np.ndarray | None = None
    ) -> np.ndarray | None:
        """[N, M] USD of tokens; `cached` of the input tokens at their own price, where known."""
        if self.prices_M2 is None:
            return None
        price_in_M, price_out_M = self.prices_M2.T
        usd = (input_tokens * price_in_M[None] + output_tokens * price_out_M[None]) / 1e6
        if cached is not None and self.bills is not None:
            less_M = price_in_M - self.bills.cached_prices_M
            usd = usd - np.nan_to_num(cached * less_M[None]) / 1e6
        return usd

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
        } | ({} if self.bills is None else {"bills": self.bills.to_json()})

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that go with `to_json`."""
        return {} if self.head is None else self.head.arrays()

    @classmethod
    def from_json(
        cls, value: dict[str, Any], arrays: dict[str, np.ndarray] | None = None
    ) -> "CostModel":
        """What `to_json` and `arrays` wrote; a null price is an unknown one."""
        prices = value["prices_usd_per_1m_tokens"]
        prices_M2 = None if prices is None else np.array(prices, np.float64)
        output_tokens_M = np.array(value["expected_output_tokens"], np.float64)
        recorded_M = np.array(value["output_tokens_recorded"], bool)
        shape = output_tokens_M.shape
        priced = prices_M2 is None or prices_M2.shape == (*shape, 2)
        if len(shape) != 1 or recorded_M.shape != shape or not priced:
            raise ValueError("costs: expected prices, lengths and sources of the same targets")
        return cls(
            prices_M2,
            output_tokens_M,
            recorded_M,
            LengthHead.from_arrays(arrays) if arrays else None,
            Bills.from_json(value["bills"]) if value.get("bills") else None,
        )


def cost_basis(data: RoutingDataset) -> str:
    """Which share of the answers with an outcome has which basis, where any cost was recorded."""
    seen_NM = ~np.isnan(data.y_NM)
    assert data.costs_NM is not None
    billed_N = ~np.isnan(data.costs_NM[seen_NM])
    counted_N = np.zeros_like(billed_N)
    if data.output_tokens_NM is not None:
        counted_N = ~billed_N & ~np.isnan(data.output_tokens_NM[seen_NM])
    shares = (billed_N.mean(), counted_N.mean(), 1 - billed_N.mean() - counted_N.mean())
    if 1.0 in shares:
        return BASES[shares.index(1.0)]
    words = (BASES[0], "recorded output tokens", "assumed output tokens")
    parts = (f"{share:.1%} {word}" for share, word in zip(shares, words, strict=True) if share > 0)
    return ", ".join(parts)


def basis_in_words(basis: str | None, form: str = "{} output tokens") -> str:
    """A `cost_basis` as a text says it; `form` is that of "recorded" and "assumed"."""
    return form.format(basis) if basis in BASES[1:] else str(basis)


def _any(values: np.ndarray) -> bool:
    return bool((~np.isnan(values)).any())
