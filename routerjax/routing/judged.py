"""What predictions are judged by: outcomes in the router's order, and costs."""

from typing import NamedTuple

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.features.feature_map import Stores
from routerjax.routing.router import Router


class Costs(NamedTuple):
    """USD per query: expected before the answer, paid for it, and what the latter is based on."""

    expected_NM: np.ndarray | None
    paid_NM: np.ndarray | None
    basis: str | None


def costs_of(router: Router, stores: Stores, data: RoutingDataset, x_NC: np.ndarray) -> Costs:
    # Tokens are counted by the first encoder's tokenizer, as `route` does.
    store = router.stores_in_order(stores)[0]
    input_tokens_N = store.query_tokens_N[store.rows_of(data.ids)]
    paid_NM, basis = router.costs.paid(input_tokens_N, data, x_NC)
    return Costs(router.costs.expected(input_tokens_N, x_NC), paid_NM, basis)


def as_router_has_them(router: Router, data: RoutingDataset) -> RoutingDataset:
    """The data with targets in the router's order."""
    if set(data.targets) != set(router.targets):
        raise ValueError(
            f"data: the router knows the targets {', '.join(router.targets)}; the outcomes are of "
            f"{', '.join(data.targets)}"
        )
    return data.select_targets(router.targets)
