"""probe_stream: from an encoder and outcomes to a ProbeTable, with no store in between.

Moments accumulate on the devices while the encoder reads; nothing is written and nothing is kept of
a query but its share of the sums, so that memory does not grow with the number of queries. A
covariance D x D for every (layer, pooling) is what there is instead. They are exact, split over
the encoder's devices, and where they do not fit, a sketch of them stands in (sketched.py).
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.selection import ALL, Selection
from routerjax.features.moments import moments_of, sums_of
from routerjax.features.pca import Axes
from routerjax.features.projected import observed_patterns, projected_of, projected_sums
from routerjax.probes.measures import moment_numbers, projected_numbers, spectrum_numbers
from routerjax.probes.probe import components, make_table, without_spectra
from routerjax.probes.streaming import sketched
from routerjax.probes.streaming.budget import check_budget
from routerjax.probes.streaming.captured import Captured
from routerjax.probes.streaming.totals import by_site, bytes_of, map_slots, total
from routerjax.probes.table import ProbeTable
from routerjax.stats import fisher

if TYPE_CHECKING:
    from routerjax.data.dataset import RoutingDataset

logger = logging.getLogger(__name__)

# D x D arrays that an eigendecomposition and what leads to it take, for one site at a time.
_SCRATCH = 8


def probe_stream(
    encoder: Encoder,
    data: "RoutingDataset",
    *,
    layers: str | Sequence[int] = ALL,
    poolings: Sequence[str] = ("last", "mean"),
    pca: bool = False,
    pca_dim: int = 200,
    shrinkage: float = fisher.SHRINKAGE,
    sketch: int | None = None,
    n_probe: int | None = None,
    seed: int = 0,
    budget_bytes: int | None = None,
    batch_tokens: int | None = None,
) -> ProbeTable:
    """`probe` without a store: the same numbers, captured on the way and not kept.

    Every query is prefilled once; with `pca` once more, because where J after PCA looks is known
    only after the first time.

    Args:
      encoder: What reads the queries; its mesh's devices share the totals.
      data: The rows to probe.
      layers: "all", or hidden-state indices.
      poolings: Names out of POOLINGS.
      pca: Whether to have J after PCA too.
      pca_dim: As in `probe`.
      shrinkage: As in `probe`.
      sketch: K, to estimate d_eff from K random projections of each covariance instead of the
        covariance: its relative standard error is about sqrt(2 / K) ("d_eff_error" in the table
        has the bound of each cell), and entropy_dim, n95 and rank are NaN. J is exact either way.
      n_probe: Rows of a sample to probe instead of all, about: whole groups are drawn.
      seed: Of the sample and of the projections.
      budget_bytes: What the totals may take on each device; by default half of what is free there,
        or 4 GiB where the device does not tell.
      batch_tokens: As in `extract`.

    Returns:
      The table; without `pca` it has no "VARIANT/pcaC".

    Raises:
      ValueError: The totals do not fit, which says what would; as `extract` and `probe`.
      FloatingPointError: An activation is not finite.
      resume.Stopped: SIGTERM came; nothing is kept.
    """
    _check_sketch(sketch, pca, encoder.width)
    data = draw_sample(data, n_probe, seed)
    selection = Selection.of(layers, poolings, encoder.n_states)
    captured = Captured.prepare(encoder, data, selection, batch_tokens)
    n_components = components(pca_dim, shrinkage, captured.rows, encoder.width) if pca else 0
    if not pca:
        if captured.rows.n_used < 2:
            raise ValueError(f"data: probing needs at least 2 rows, got {captured.rows.n_used}")
        logger.info("probe: no J after PCA, which takes a second prefill (pca=True, --pca)")
    check_budget(captured, functools.partial(_bytes, captured), sketch, n_components, budget_bytes)

    numbers, axes = _first_pass(captured, sketch, n_components, seed)
    if n_components:
        assert axes is not None
        numbers |= _second_pass(captured, axes, shrinkage, n_components)
    tables = {name: captured.by_cell(value_S) for name, value_S in numbers.items()}
    constant_LP = tables.pop("constant")
    table = make_table(selection, captured.rows, tables, constant_LP)
    return table if sketch is None else _sketched_table(table, sketch)


def draw_sample(data: "RoutingDataset", n: int | None, seed: int) -> "RoutingDataset":
    """About n rows, whole groups, the same for any order of the rows.

    Args:
      data: To draw from.
      n: Rows wanted; None, or as many as there are, for all.
      seed: Another seed, another sample.

    Raises:
      ValueError: n is below 2.
    """
    if n is not None and n < 2:
        raise ValueError(f"n_probe: probing needs at least 2 rows, got {n}")
    if n is None or n >= len(data):
        return data
    return data.split(n / len(data), seed)[0]


def _check_sketch(sketch: int | None, pca: bool, width: int) -> None:
    if sketch is None:
        return
    if not 2 <= sketch < width / 2:
        raise ValueError(
            f"sketch: expected 2 to {(width - 1) // 2} projections (more take no less memory than "
            f"the exact totals of states {width} wide), got {sketch}"
        )
    if pca:
        raise ValueError("pca: a sketch has no axes to project on; leave out pca or the sketch")


def _first_pass(
    captured: Captured, sketch: int | None, n_components: int, seed: int
) -> tuple[dict[str, np.ndarray], list[Axes] | None]:
    """All numbers [S] and [S, M] but those after PCA, and the axes of that."""
    mesh = captured.encoder.mesh
    if sketch is None:
        slots = total(captured, "probe", _exact_sums, sketched.pilot_of)
        pairs = map_slots(_exact_numbers(n_components), mesh, [(s.high, s.fixed) for s in slots])
        return _to_host([numbers for numbers, _ in pairs]), [axes for _, axes in pairs]
    signs_DK = sketched.draw_signs(captured.encoder.width, sketch, seed)
    slots = total(captured, "probe", _sketched_sums, sketched.pilot_of, signs_DK)
    result = map_slots(_sketched_numbers, mesh, [(s.high, s.fixed) for s in slots], signs_DK)
    return _to_host(result), None


def _second_pass(
    captured: Captured, axes: list[Axes], shrinkage: float, n_components: int
) -> dict[str, np.ndarray]:
    """J in the PCA spaces, [S, M]."""
    columns_U, pattern_M = observed_patterns(captured.rows)
    slots = total(captured, "probe after PCA", _projected_sums, axes, columns_U)
    shared = (pattern_M, np.float32(shrinkage))
    one = _projected_numbers(f"pca{n_components}")
    return _to_host(map_slots(one, captured.encoder.mesh, [slot.high for slot in slots], *shared))


def _to_host(slots: list[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    return {name: by_site([slot[name] for slot in slots]) for name in slots[0]}


# One site's share of the two passes. Functions of the module, and kept where they are made, because
# what is compiled is found by the function.


def _exact_sums(x_RD, pilot, weight_R, y_RM, shared):
    del shared
    return sums_of(x_RD, pilot.shift_D, weight_R, y_RM, gram=True)


def _sketched_sums(x_RD, pilot, weight_R, y_RM, signs_DK):
    return (
        sums_of(x_RD, pilot.shift_D, weight_R, y_RM, gram=False),
        sketched.sketch_sums(x_RD, pilot, weight_R, signs_DK),
    )


def _projected_sums(x_RD, axes, weight_R, y_RM, columns_U):
    return projected_sums(x_RD, axes, weight_R, y_RM, columns_U)


@functools.cache
def _exact_numbers(n_components: int) -> Callable[[Any], tuple[dict[str, jax.Array], Axes | None]]:
    def of_one(site):
        sums, pilot = site
        moments = moments_of(sums, pilot.shift_D)
        numbers, axes = spectrum_numbers(moments, n_components)
        return moment_numbers(moments) | numbers, axes

    return of_one


def _sketched_numbers(site, signs_DK):
    (sums, sketch), pilot = site
    numbers = sketched.sketched_numbers(sums, sketch, pilot, signs_DK)
    return moment_numbers(moments_of(sums, pilot.shift_D)) | numbers


@functools.cache
def _projected_numbers(space: str) -> Callable[..., dict[str, jax.Array]]:
    def of_one(sums, pattern_M, shrinkage):
        return projected_numbers(projected_of(sums), pattern_M, shrinkage, space)

    return of_one


def _sketched_table(table: ProbeTable, sketch: int) -> ProbeTable:
    """A sketch's table, with what it cannot know as NaN, and how sure it is said."""
    result = table.spectrum["d_eff_error/standardised"]
    if np.isfinite(result).any():
        logger.info(
            "probe: d_eff from a sketch of %d projections: relative standard error at most %.1f%% "
            "on raw states, %.1f%% on standardised ones (the worst cell, bias included)",
            sketch, 100 * sketched.standard_error(sketch), 100 * np.nanmax(result),
        )  # fmt: skip
    return without_spectra(
        table, f"a sketch of {sketch} projections has no eigenvalues: probe without a sketch"
    )


def _bytes(captured: Captured, sketch: int | None, n_components: int) -> tuple[int, int]:
    """Bytes of one site's totals, and of what one site at a time takes beside all of them."""

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    D, R, n_targets = captured.encoder.width, captured.block_rows, len(captured.rows.targets)
    block = (array(R), array(R, n_targets))
    pilot = sketched.Pilot(array(D), array(D))
    if sketch is not None:
        sums = jax.eval_shape(_sketched_sums, array(R, D), pilot, *block, array(D, sketch))
        return bytes_of(sums), 4 * _SCRATCH * D * sketch
    site = bytes_of(jax.eval_shape(_exact_sums, array(R, D), pilot, *block, None))
    if n_components:
        axes = Axes(array(D), array(D), array(D, n_components))
        columns_U = jax.ShapeDtypeStruct(observed_patterns(captured.rows)[0].shape, jnp.int32)
        sums = jax.eval_shape(_projected_sums, array(R, D), axes, *block, columns_U)
        # The axes come while the first totals are there, and stay beside the second ones.
        site = max(site, bytes_of(sums)) + 4 * D * n_components
    return site, 4 * _SCRATCH * D * D
