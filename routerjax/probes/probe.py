"""probe: the streaming job from a store and outcomes to a ProbeTable.

Two passes over the store in groups of layers. The first collects moments and covariances; from
them come the spectra, J on raw and standardised states, and the axes of one PCA per (layer,
pooling). The second collects the classes along those axes, for J after PCA.
"""

import dataclasses
import functools
import logging
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.encoder.selection import Selection
from routerjax.features.moments import Moments, collect
from routerjax.features.pca import Axes
from routerjax.features.projected import Projected, collect_projected, observed_patterns
from routerjax.features.row_blocks import BUDGET_BYTES, AlignedOutcomes, align, groups
from routerjax.probes.measures import (
    moment_numbers,
    projected_numbers,
    spectrum_numbers,
    trace_numbers,
)
from routerjax.probes.table import ProbeTable, reason_for
from routerjax.stats import fisher
from routerjax.store.store import ActivationStore

if TYPE_CHECKING:
    from routerjax.data.dataset import RoutingDataset

logger = logging.getLogger(__name__)

# Dimensions that take the eigenvalues; d_eff has another way, by traces.
NEED_EIGENVALUES = ("entropy_dim", "n95", "rank")


def probe(
    store: ActivationStore,
    data: "RoutingDataset",
    pca_dim: int = 200,
    shrinkage: float = fisher.SHRINKAGE,
    budget_bytes: int = BUDGET_BYTES,
    quick: bool = False,
) -> ProbeTable:
    """Fisher separability and effective dimensionality of every hidden state and pooling.

    Spaces: "raw" states; "standardised" by mean and deviation over all rows of `data`; "pcaC", the
    C leading principal components of the standardised states of one (layer, pooling). J uses the
    observed outcomes of its target; what needs no labels uses all rows.

    Args:
      store: The hidden states; rows that are not in `data` count for nothing.
      data: The rows to probe, in any order.
      pca_dim: C; taken down to the number of dimensions, and of rows less one, where that is less.
      shrinkage: Of the within-class covariance in the "lda" variant, in [0, 1].
      budget_bytes: Bytes the D x D accumulators may take on the device at a time.
      quick: Only J by traces and by means on raw and standardised states, d_eff (by traces) and
        anisotropy: one pass over the store, no factorisation, several times as fast.

    Returns:
      The table. `fisher` has J as "VARIANT/SPACE", with variants trace and mean on all spaces,
      ridge on standardised states and lda after PCA; `spectrum` has d_eff, d_eff_trace,
      entropy_dim, n95 and rank as "NAME/SPACE" on raw and standardised states, and anisotropy.

    Raises:
      ValueError: `data` is empty or has an id that is not in the store, or an argument is out of
        range.
    """
    rows = align(store, data)
    n_components = components(pca_dim, shrinkage, rows, store.width)
    columns_U, pattern_M = observed_patterns(rows)
    if quick:
        n_components = 0

    # Accumulator, its compensation and one block's product; the C x C of the second pass likewise.
    site_bytes = 12 * max(store.width**2, len(columns_U) * n_components**2)
    tables: dict[str, np.ndarray] = {}
    selection = Selection(store.layers, store.poolings)
    constant_LP = np.zeros(selection.shape, bool)
    for group in groups(selection, site_bytes, budget_bytes):
        at = selection.index(group)
        numbers = _probe_group(store, rows, group, n_components, columns_U, pattern_M, shrinkage)
        constant_LP[at] = numbers.pop("constant")
        for name, value in numbers.items():
            shape = (*constant_LP.shape, *value.shape[2:])
            tables.setdefault(name, np.full(shape, np.nan, np.float32))[at] = value
        logger.info("probe: hidden states %d to %d done", group.layers[0], group.layers[-1])
    table = make_table(selection, rows, tables, constant_LP)
    return without_spectra(table, "a quick probe takes no eigenvalues") if quick else table


def without_spectra(table: ProbeTable, reason: str) -> ProbeTable:
    """The table of a probe that took no eigenvalues: NaN for what needs them, and the reason.

    Args:
      table: What was found.
      reason: Why the rest was not.
    """
    nan_LP = np.full((len(table.layers), len(table.poolings)), np.nan, np.float32)
    names = [f"{name}/{space}" for name in NEED_EIGENVALUES for space in ("raw", "standardised")]
    everywhere = reason_for(f"{', '.join(NEED_EIGENVALUES)}: {reason}")
    return dataclasses.replace(
        table,
        spectrum=table.spectrum | {name: nan_LP.copy() for name in names},
        reasons=[*table.reasons, everywhere],
    )


def components(pca_dim: int, shrinkage: float, rows: AlignedOutcomes, n_dimensions: int) -> int:
    """C, the components that the rows can have; checks what a user asked for.

    Raises:
      ValueError: As `probe`.
    """
    if pca_dim < 1:
        raise ValueError(f"pca_dim: expected at least 1 component, got {pca_dim}")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage: expected a share from 0 to 1, got {shrinkage}")
    if rows.n_used < 2:
        raise ValueError(f"data: probing needs at least 2 rows, got {rows.n_used}")
    n_components = min(pca_dim, n_dimensions, rows.n_used - 1)
    if n_components < pca_dim:
        logger.info(
            "probe: PCA to %d instead of %d components: %d rows of %d dimensions have no more",
            n_components, pca_dim, rows.n_used, n_dimensions,
        )  # fmt: skip
    return n_components


def make_table(
    selection: Selection,
    rows: AlignedOutcomes,
    tables: dict[str, np.ndarray],
    constant_LP: np.ndarray,
) -> ProbeTable:
    """The table, with a reason for each number that is not there.

    Args:
      selection: The axes L and P.
      rows: What was probed.
      tables: [L, P, M] or [L, P] by name; what does not exist is made NaN in place.
      constant_LP: [L, P] states that do not vary.
    """
    layers, poolings = selection.layers, selection.poolings
    counts_M2 = rows.class_counts_M2
    scarce_M = counts_M2.min(axis=1) < 2
    reasons: list[dict[str, Any]] = []
    for m in np.flatnonzero(scarce_M):
        wrong, correct = counts_M2[m]
        text = f"J takes two rows of each class, there are {correct} correct and {wrong} wrong"
        reasons.append(reason_for(text, target=rows.targets[m]))
    for i, j in np.argwhere(constant_LP):
        text = f"the state is constant over all {rows.n_used} rows"
        reasons.append(reason_for(text, layers[i], poolings[j]))
    for name, table in tables.items():
        if name != "anisotropy":  # The one number that a constant state has.
            table[constant_LP] = np.nan
        unexplained = ~np.isfinite(table)
        unexplained[constant_LP] = False
        if table.ndim == 3:
            unexplained[:, :, scarce_M] = False
        for cell in np.argwhere(unexplained):
            text = f"{name}: {_why(name, float(table[tuple(cell)]))}"
            target = rows.targets[cell[2]] if len(cell) == 3 else None
            reasons.append(reason_for(text, layers[cell[0]], poolings[cell[1]], target))
        table[np.isinf(table)] = np.nan
    return ProbeTable(
        layers=layers,
        poolings=poolings,
        targets=rows.targets,
        fisher={name: table for name, table in tables.items() if table.ndim == 3},
        spectrum={name: table for name, table in tables.items() if table.ndim == 2},
        reasons=reasons,
        n_queries=rows.n_used,
    )


def _probe_group(
    store: ActivationStore,
    rows: AlignedOutcomes,
    selection: Selection,
    n_components: int,
    columns_U: np.ndarray,
    pattern_M: np.ndarray,
    shrinkage: float,
) -> dict[str, np.ndarray]:
    """All numbers of some layers, by name, [L, P] or [L, P, M]."""
    moments = collect(store, rows, selection, gram=True)
    if not n_components:
        return {name: np.asarray(value) for name, value in _quick_pass(moments).items()}
    numbers, axes = _first_pass(moments, n_components)
    del moments  # The covariances go before the second pass takes its own memory.
    projected = collect_projected(store, rows, selection, axes, columns_U)
    numbers |= _second_pass(projected, jnp.asarray(pattern_M), shrinkage, f"pca{n_components}")
    return {name: np.asarray(value) for name, value in numbers.items()}


@jax.jit
def _quick_pass(moments: Moments) -> dict[str, jax.Array]:
    """Numbers that take no eigenvalues."""
    return jax.vmap(jax.vmap(lambda one: moment_numbers(one) | trace_numbers(one)))(moments)


@functools.partial(jax.jit, static_argnames="n_components")
def _first_pass(moments: Moments, n_components: int) -> tuple[dict[str, jax.Array], Axes]:
    """Numbers on raw and standardised states, and the axes of each PCA."""

    def of_one(one: Moments) -> tuple[dict[str, jax.Array], Axes]:
        numbers, axes = spectrum_numbers(one, n_components)
        assert axes is not None
        return moment_numbers(one) | numbers, axes

    # One after the other: an eigendecomposition needs several D x D of its own, and devices run a
    # batch of large ones in turn anyway.
    shape = moments.mean_D.shape[:2]
    sites = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), moments)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), jax.lax.map(of_one, sites))


@functools.partial(jax.jit, static_argnames="space")
def _second_pass(
    projected: Projected, pattern_M: jax.Array, shrinkage: float, space: str
) -> dict[str, jax.Array]:
    """J in the PCA spaces."""

    def of_one(one: Projected) -> dict[str, jax.Array]:
        return projected_numbers(one, pattern_M, shrinkage, space)

    # Site by site, so that the M matrices C x C are there for one (layer, pooling) at a time.
    shape = projected.class_weight_MK.shape[:2]
    sites = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), projected)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), jax.lax.map(of_one, sites))


def _why(name: str, value: float) -> str:
    if np.isinf(value):
        return "the classes differ and do not vary within themselves, so J has no bound"
    if name.startswith("lda/"):
        return "the within-class covariance is singular: use shrinkage > 0"
    return "the moments leave float32's range"
