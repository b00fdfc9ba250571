"""Many L2 logistic regressions on the same features at once, without a Hessian.

The problems of one training set (every target at every PCA width) share one matrix of features, so
a step of all of them is two matrix products. A width is a mask on the leading components: narrower
problems are prefixes of wider ones. Truncated Newton: each Newton system is solved by conjugate
gradients, preconditioned by the features' variances. For principal components, which are
uncorrelated, that is the exact inverse of the first Hessian and a good one of the later Hessians.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from routerjax.stats.numerics import HIGHEST

# A problem is solved when its objective lies within this of its minimum, by a quadratic estimate,
# in nats a row. Scores are then within about 1e-3 of their values at convergence.
TOLERANCE = 1e-7

_MAX_NEWTON = 30
_MAX_CG = 12
_MAX_HALVINGS = 12


class Fit(NamedTuple):
    """Solutions of Q problems.

    Attributes:
      weight_QC: [Q, C] coefficients; 0 beyond each problem's width.
      bias_Q: [Q] intercepts.
      solved_Q: [Q] bool, whether the tolerance was met.
    """

    weight_QC: jax.Array
    bias_Q: jax.Array
    solved_Q: jax.Array


class _State(NamedTuple):
    weight_QC: jax.Array
    bias_Q: jax.Array
    margin_QN: jax.Array
    solved_Q: jax.Array
    step: jax.Array


class _Step(NamedTuple):
    """A direction in coefficients, intercept and margins."""

    weight_QC: jax.Array
    bias_Q: jax.Array
    margin_QN: jax.Array


def fit(
    z_NC: jax.Array,
    variance_C: jax.Array,
    y_QN: jax.Array,
    observed_QN: jax.Array,
    kept_QC: jax.Array,
    tolerance: float = TOLERANCE,
) -> Fit:
    """Minimises 1/2 |w|^2 + sum over observed rows of the log loss, for each problem.

    This is scikit-learn's LogisticRegression(C=1): the intercept is not penalised. Nothing of the
    size Q x N x C is ever made; memory is a few arrays [Q, N].

    Args:
      z_NC: [N, C] features, uncorrelated for the preconditioner's sake (any features will do).
      variance_C: [C] their variances over the rows.
      y_QN: [Q, N] labels 0 or 1; anything where not observed.
      observed_QN: [Q, N] 1 where the row counts, else 0. A problem without both classes among its
        rows has no finite intercept: leave its rows out altogether.
      kept_QC: [Q, C] 1 for the features a problem may use, else 0.
      tolerance: In nats a row.

    Returns:
      The solutions; a problem without rows is solved by zeros.
    """
    rows_Q = jnp.maximum(observed_QN.sum(axis=1), 1.0)
    share_Q = (observed_QN * y_QN).sum(axis=1) / rows_Q
    start_Q = jnp.where(share_Q * (1 - share_Q) > 0, jnp.log(share_Q / (1 - share_Q)), 0.0)
    zeros_QC = jnp.zeros(kept_QC.shape, z_NC.dtype)
    margin_QN = jnp.broadcast_to(start_Q[:, None], y_QN.shape)

    def loss(weight_QC: jax.Array, margin_QN: jax.Array) -> jax.Array:
        each_QN = observed_QN * (jax.nn.softplus(margin_QN) - y_QN * margin_QN)
        return each_QN.sum(axis=1) + 0.5 * jnp.square(weight_QC).sum(axis=1)

    def unsolved(state: _State) -> jax.Array:
        return (state.step < _MAX_NEWTON) & ~state.solved_Q.all()

    def newton(state: _State) -> _State:
        p_QN = jax.nn.sigmoid(state.margin_QN)
        residual_QN = observed_QN * (p_QN - y_QN)
        gradient_QC = kept_QC * _to_features(residual_QN, z_NC) + state.weight_QC
        gradient_Q = residual_QN.sum(axis=1)
        curvature_QN = observed_QN * p_QN * (1 - p_QN)
        total_Q = jnp.maximum(curvature_QN.sum(axis=1), 1e-6)
        precondition_QC = kept_QC / (total_Q[:, None] * variance_C[None] + 1.0)
        # Half the squared Newton decrement, the Hessian being the preconditioner's.
        excess_Q = 0.5 * (
            (precondition_QC * jnp.square(gradient_QC)).sum(axis=1) + gradient_Q**2 / total_Q
        )
        solved_Q = state.solved_Q | (excess_Q <= tolerance * rows_Q)
        step = _conjugate_gradients(
            z_NC, curvature_QN, kept_QC, precondition_QC, 1.0 / total_Q,
            gradient_QC, gradient_Q, solved_Q,
        )  # fmt: skip
        slope_Q = (gradient_QC * step.weight_QC).sum(axis=1) + gradient_Q * step.bias_Q
        length_Q = _backtrack(loss, state, step, slope_Q, solved_Q)
        return _State(
            state.weight_QC + length_Q[:, None] * step.weight_QC,
            state.bias_Q + length_Q * step.bias_Q,
            state.margin_QN + length_Q[:, None] * step.margin_QN,
            solved_Q,
            state.step + 1,
        )

    start = _State(zeros_QC, start_Q, margin_QN, observed_QN.sum(axis=1) == 0, jnp.int32(0))
    end = jax.lax.while_loop(unsolved, newton, start)
    return Fit(end.weight_QC, end.bias_Q, end.solved_Q)


def scores(fitted: Fit, z_NC: jax.Array) -> jax.Array:
    """Logits of rows by every problem, [Q, N]."""
    return _to_rows(fitted.weight_QC, z_NC) + fitted.bias_Q[:, None]


def _to_rows(v_QC: jax.Array, z_NC: jax.Array) -> jax.Array:
    return jnp.einsum("qc,nc->qn", v_QC, z_NC, precision=HIGHEST)


def _to_features(r_QN: jax.Array, z_NC: jax.Array) -> jax.Array:
    return jnp.einsum("qn,nc->qc", r_QN, z_NC, precision=HIGHEST)


def _conjugate_gradients(
    z_NC: jax.Array,
    curvature_QN: jax.Array,
    kept_QC: jax.Array,
    precondition_QC: jax.Array,
    precondition_Q: jax.Array,
    gradient_QC: jax.Array,
    gradient_Q: jax.Array,
    solved_Q: jax.Array,
) -> _Step:
    """Solves the Newton systems (I + Z' D Z) s = -g, each to a tenth of its gradient.

    The step also has Z s, by which the margins are updated without another product.
    """

    def size(r_QC: jax.Array, r_Q: jax.Array) -> jax.Array:
        return (precondition_QC * jnp.square(r_QC)).sum(axis=1) + precondition_Q * jnp.square(r_Q)

    first_Q = size(gradient_QC, gradient_Q)
    goal_Q = 0.01 * first_Q

    def going(carry):
        *_, size_Q, n = carry
        return (n < _MAX_CG) & ((size_Q > goal_Q) & ~solved_Q).any()

    def iterate(carry):
        step, r_QC, r_Q, v_QC, v_Q, size_Q, n = carry
        u_QN = _to_rows(v_QC, z_NC) + v_Q[:, None]
        du_QN = curvature_QN * u_QN
        hv_QC = kept_QC * _to_features(du_QN, z_NC) + v_QC
        hv_Q = du_QN.sum(axis=1)
        bend_Q = (v_QC * hv_QC).sum(axis=1) + v_Q * hv_Q
        going_Q = (size_Q > goal_Q) & ~solved_Q & (bend_Q > 0)
        a_Q = jnp.where(going_Q, size_Q / jnp.where(bend_Q > 0, bend_Q, 1.0), 0.0)
        step = _Step(
            step.weight_QC + a_Q[:, None] * v_QC,
            step.bias_Q + a_Q * v_Q,
            step.margin_QN + a_Q[:, None] * u_QN,
        )
        r_QC, r_Q = r_QC - a_Q[:, None] * hv_QC, r_Q - a_Q * hv_Q
        next_Q = size(r_QC, r_Q)
        b_Q = next_Q / jnp.where(size_Q > 0, size_Q, 1.0)
        v_QC = precondition_QC * r_QC + b_Q[:, None] * v_QC
        v_Q = precondition_Q * r_Q + b_Q * v_Q
        return step, r_QC, r_Q, v_QC, v_Q, jnp.where(going_Q, next_Q, size_Q), n + 1

    zero = _Step(*map(jnp.zeros_like, (gradient_QC, gradient_Q, curvature_QN)))
    start_QC, start_Q = -precondition_QC * gradient_QC, -precondition_Q * gradient_Q
    carry = (zero, -gradient_QC, -gradient_Q, start_QC, start_Q, first_Q, jnp.int32(0))
    return jax.lax.while_loop(going, iterate, carry)[0]


def _backtrack(loss, state: _State, step: _Step, slope_Q: jax.Array, solved_Q: jax.Array):
    """The step lengths: 1, halved until the loss falls as Armijo asks; 0 where already solved."""
    before_Q = loss(state.weight_QC, state.margin_QN)
    # Differences that float32 cannot resolve in a sum over the rows do not shorten a step.
    slack_Q = 1e-6 * jnp.abs(before_Q)

    def too_long(length_Q: jax.Array) -> jax.Array:
        after_Q = loss(
            state.weight_QC + length_Q[:, None] * step.weight_QC,
            state.margin_QN + length_Q[:, None] * step.margin_QN,
        )
        return ~(after_Q <= before_Q + 1e-4 * length_Q * slope_Q + slack_Q) & ~solved_Q

    def halve(carry):
        length_Q, long_Q, n = carry
        length_Q = jnp.where(long_Q, 0.5 * length_Q, length_Q)
        return length_Q, too_long(length_Q), n + 1

    length_Q = jnp.where(solved_Q, 0.0, 1.0)
    carry = (length_Q, too_long(length_Q), jnp.int32(0))
    return jax.lax.while_loop(lambda c: c[1].any() & (c[2] < _MAX_HALVINGS), halve, carry)[0]
