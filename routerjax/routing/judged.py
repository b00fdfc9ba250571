"""Judged: rows on which predictions are judged, and what many measures ask of them."""

import dataclasses
import functools

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import numbered
from routerjax.features.feature_map import Stores, as_tuple
from routerjax.routing.costs import CostModel
from routerjax.routing.limits import Limits
from routerjax.routing.router import Router


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """Rows with outcomes and costs; what follows from them is computed once.

    Attributes:
      data: [N] rows and their outcomes.
      query_tokens_N: [N] tokens of each query itself; None where nobody counted them.
      expected_NM: [N, M] USD per query as known before the answer, NaN without a price; None
        without any prices.
      paid_NM: [N, M] USD per query as paid; None without prices.
      basis: What `paid_NM` is based on: "recorded" or "assumed" output tokens, "recorded cost", or
        the share of each where there are several (`costs.cost_basis`); None without prices.
      allowed_NM: [N, M] bool, the targets that can take each query; None for all.
    """

    data: RoutingDataset
    query_tokens_N: np.ndarray | None = None
    expected_NM: np.ndarray | None = None
    paid_NM: np.ndarray | None = None
    basis: str | None = None
    allowed_NM: np.ndarray | None = None

    @classmethod
    def of(
        cls, data: RoutingDataset, stores: Stores, costs: CostModel, x_NC: np.ndarray | None = None
    ) -> "Judged":
        """Rows with the costs of a model.

        Args:
          data: N rows and their outcomes.
          stores: The tokens of a query are those of the first one's tokenizer, as `Router.route`
            counts them.
          costs: Prices and expected lengths of the same targets.
          x_NC: [N, C] features; None where no length is predicted from them.

        Raises:
          ValueError: A query is not in the store, or features are needed and missing.
        """
        tokens_N = query_tokens(stores, data)
        paid_NM, basis = costs.paid(tokens_N, data, x_NC)
        return cls(data, tokens_N, costs.expected(tokens_N, x_NC), paid_NM, basis)

    @functools.cached_property
    def correct_NM(self) -> np.ndarray:
        """[N, M] float64 1, 0 or NaN: a mean of float32 over a million rows loses digits."""
        return np.asarray(self.data.correct_NM, np.float64)

    @functools.cached_property
    def complete_N(self) -> np.ndarray:
        """[N] bool, the rows with an outcome of every target."""
        return ~np.isnan(self.correct_NM).any(axis=1)

    @functools.cached_property
    def by_dataset(self) -> tuple[tuple[str, ...], np.ndarray] | None:
        """[D] names, ascending, and [N] the number of each row's; None where no names are given."""
        return None if self.data.datasets is None else numbered(self.data.datasets)


def query_tokens(stores: Stores, data: RoutingDataset) -> np.ndarray:
    """[N] tokens of each query itself, by the tokenizer of the first store's encoder."""
    store = as_tuple(stores)[0]
    return store.query_tokens_N[store.rows_of(data.ids)]


def allowed_of(stores: Stores, data: RoutingDataset) -> np.ndarray | None:
    """[N, M] bool, as `Limits.takes_or_all`; None where the data set tells no limits.

    Args:
      stores: As in `query_tokens`.
      data: N rows.

    Raises:
      ValueError: A query is not in the store.
    """
    limits = Limits.of(data)
    return None if limits is None else limits.takes_or_all(query_tokens(stores, data), data.queries)


def judge(router: Router, stores: Stores, data: RoutingDataset) -> tuple[Judged, np.ndarray]:
    """Rows with the targets, prices and lengths of a router in its order; x_NC [N, C] features.

    Args:
      router: Whose prices and lengths count.
      stores: Hidden states of the rows, by the router's encoders, in any order.
      data: N rows; the router's targets, in any order.

    Raises:
      ValueError: The targets differ, or a store is from another encoder or lacks queries.
    """
    if set(data.targets) != set(router.targets):
        raise ValueError(
            f"data: the router knows the targets {', '.join(router.targets)}; the outcomes are of "
            f"{', '.join(data.targets)}"
        )
    data, stores = data.select_targets(router.targets), router.stores_in_order(stores)
    x_NC = router.features.apply_store(stores, data.ids)
    judged = Judged.of(data, stores, router.costs, x_NC)
    if router.limits is not None and judged.query_tokens_N is not None:
        allowed_NM = router.limits.takes_or_all(judged.query_tokens_N, data.queries)
        judged = dataclasses.replace(judged, allowed_NM=allowed_NM)
    return judged, x_NC
