"""The probes' numbers of one site (a layer and a pooling), by name, from its moments."""

import jax
import jax.numpy as jnp

from routerjax.features.moments import Moments
from routerjax.features.pca import Axes, principal_components, rank
from routerjax.features.projected import Projected, pooled_within
from routerjax.probes.table import RIDGE
from routerjax.stats import fisher, spectrum
from routerjax.stats.numerics import is_constant


def moment_numbers(one: Moments) -> dict[str, jax.Array]:
    """The numbers of one site that take no covariance.

    Args:
      one: Its moments.

    Returns:
      "constant" and "anisotropy" [], J on raw and on standardised states [M].
    """
    inverse_D = one.inverse_scale_D
    return {
        "constant": is_constant(one.mean_D, one.variance_D, one.least),
        "anisotropy": spectrum.anisotropy(one.unit_D, one.unit_rows),
        **_by_target(one, jnp.where(inverse_D > 0, 1.0, 0.0), "raw"),
        **_by_target(one, inverse_D, "standardised"),
    }


def spectrum_numbers(one: Moments, n_components: int) -> tuple[dict[str, jax.Array], Axes | None]:
    """The effective dimensions of one site, and the axes of its PCA.

    Args:
      one: Its moments, with the covariance.
      n_components: C, of the PCA; 0 skips the eigenvectors and returns no axes.

    Returns:
      Numbers [] as "NAME/raw" and "NAME/standardised", J by `fisher_ridge` [M], and the axes, or
      None.
    """
    inverse_D = one.inverse_scale_D
    varies_D = jnp.where(inverse_D > 0, 1.0, 0.0)
    assert one.covariance_DD is not None
    raw_DD = one.covariance_DD * (varies_D[:, None] * varies_D[None, :])
    standard_DD = one.covariance_DD * (inverse_D[:, None] * inverse_D[None, :])
    if n_components:
        components_DC, standard_D = principal_components(standard_DD, varies_D, n_components)
        axes = Axes(one.mean_D / one.unit, inverse_D * one.unit, components_DC)
    else:
        standard_D, axes = jnp.linalg.eigvalsh(standard_DD), None
    numbers = {
        **_ridge(one, inverse_D, standard_DD),
        **_dimensions("raw", raw_DD, jnp.linalg.eigvalsh(raw_DD)),
        **_dimensions("standardised", standard_DD, standard_D),
    }
    return numbers, axes


def trace_numbers(one: Moments) -> dict[str, jax.Array]:
    """Effective dimensionality by traces alone, which takes no factorisation.

    Args:
      one: Moments of one site, with the covariance.

    Returns:
      [] each: "d_eff" and "d_eff_trace", which are one number here, of both spaces.
    """
    inverse_D = one.inverse_scale_D
    assert one.covariance_DD is not None
    numbers: dict[str, jax.Array] = {}
    varies_D = jnp.where(inverse_D > 0, 1.0, 0.0)
    for space, scale_D in (("raw", varies_D), ("standardised", inverse_D)):
        value = spectrum.d_eff_trace(one.covariance_DD * (scale_D[:, None] * scale_D[None, :]))
        numbers |= {f"d_eff/{space}": value, f"d_eff_trace/{space}": value}
    return numbers


def projected_numbers(
    one: Projected, pattern_M: jax.Array, shrinkage: float | jax.Array, space: str
) -> dict[str, jax.Array]:
    """J [M] of one site in its PCA space.

    Args:
      one: The classes there.
      pattern_M: [M] of `observed_patterns`.
      shrinkage: As in `probe`.
      space: Its name.
    """

    def of_target(
        weight_K: jax.Array, mean_KC: jax.Array, variance_KC: jax.Array, gram_CC: jax.Array
    ) -> dict[str, jax.Array]:
        within_CC = pooled_within(weight_K, mean_KC, gram_CC)
        return {
            f"trace/{space}": fisher.fisher_trace(weight_K, mean_KC, variance_KC),
            f"mean/{space}": fisher.fisher_mean(weight_K, mean_KC, variance_KC),
            f"lda/{space}": fisher.fisher_lda(weight_K, mean_KC, within_CC, shrinkage),
        }

    classes = (one.class_weight_MK, one.class_mean_MKC, one.class_variance_MKC)
    return jax.vmap(of_target)(*classes, one.gram_UCC[pattern_M])


def _dimensions(
    space: str, covariance_DD: jax.Array, eigenvalues_D: jax.Array
) -> dict[str, jax.Array]:
    return {
        f"d_eff/{space}": spectrum.d_eff(eigenvalues_D),
        f"d_eff_trace/{space}": spectrum.d_eff_trace(covariance_DD),
        f"entropy_dim/{space}": spectrum.entropy_dim(eigenvalues_D),
        f"n95/{space}": spectrum.n_components(eigenvalues_D, 0.95),
        f"rank/{space}": rank(eigenvalues_D).astype(jnp.float32),
    }


def _ridge(one: Moments, inverse_D: jax.Array, standard_DD: jax.Array) -> dict[str, jax.Array]:
    ridge = fisher.ridge_of(standard_DD)
    offset_MKD = one.class_offset_MKD * inverse_D[None, None]
    return {
        RIDGE: jax.vmap(fisher.fisher_ridge, (0, 0, None))(one.class_weight_MK, offset_MKD, ridge)
    }


def _by_target(one: Moments, scale_D: jax.Array, space: str) -> dict[str, jax.Array]:
    """J of every target, dimensions multiplied by a scale (0 leaves one out)."""

    def of_target(
        weight_K: jax.Array, offset_KD: jax.Array, variance_KD: jax.Array
    ) -> dict[str, jax.Array]:
        offset_KD = offset_KD * scale_D[None]
        variance_KD = variance_KD * jnp.square(scale_D)[None]
        return {
            f"trace/{space}": fisher.fisher_trace(weight_K, offset_KD, variance_KD),
            f"mean/{space}": fisher.fisher_mean(weight_K, offset_KD, variance_KD),
        }

    return jax.vmap(of_target)(one.class_weight_MK, one.class_offset_MKD, one.class_variance_MKD)
