"""The gated delta rule: a matrix-valued memory that decays and is corrected token by token.

Axes: G heads of queries and keys, H of values and memories, E and E' the widths of a key and of a
value, C tokens of a chunk.
"""

import math

import jax
import jax.numpy as jnp

from routerjax.runtime.devices import power_of_two

HIGHEST = jax.lax.Precision.HIGHEST
CHUNK = 64  # tokens of a chunk, as the models were trained with
_BASE = 8  # rows of a triangular inverse that are substituted one by one


def delta_rule(
    q_BTGE: jax.Array,
    k_BTGE: jax.Array,
    v_BTHE: jax.Array,
    decay_BTH: jax.Array,
    beta_BTH: jax.Array,
    state_BHEE: jax.Array,
    *,
    most_floats: int,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """Reads and corrects the memory S [E, E'] of every head, from the first token to the last.

    With q and k of unit length, token by token:

        S <- exp(decay) S
        S <- S + beta k (v - S^T k)^T
        o  = S^T q / sqrt(E)

    computed in chunks of C tokens. Within a chunk the corrections d_C = beta (v - S^T k) of all its
    tokens solve one unit lower triangular system: with D_ij = exp(decay summed over j < t <= i),

        (I + tril(beta_i k_i.k_j D_ij, -1)) d = beta (v - D_i0 S^T k)

    whose inverse needs no S, so that from chunk to chunk there remain four products. All of it is
    float32 at the highest precision, whatever the model's dtype: S gathers every token's errors.
    One with decay 0 and beta 0 leaves S as it is: this is how padding is passed over.

    Args:
      q_BTGE: [B, T, G, E] queries, of any length each; value head h reads head h // (H / G).
      k_BTGE: [B, T, G, E] keys.
      v_BTHE: [B, T, H, E'] values.
      decay_BTH: [B, T, H] float32 logarithms of the decay, at most 0.
      beta_BTH: [B, T, H] float32, in [0, 1].
      state_BHEE: [B, H, E, E'] float32 memory before the first token.
      most_floats: Float32 numbers that a step over chunks may hold; one chunk is always taken.
      chunk: C, a power of two.

    Returns:
      o_BTHE [B, T, H, E'] and the memory after the last token, both float32.

    References:
      Gated Delta Networks, arXiv 2412.06464; the chunked form, arXiv 2406.06484.
    """
    B, T, H, E = v_BTHE.shape
    G = k_BTGE.shape[2]
    # Short prompts need no longer chunks than themselves.
    chunk = min(chunk, power_of_two(T))
    n_together = _chunks_together(B * H, chunk, k_BTGE.shape[3] + E, -(-T // chunk), most_floats)
    n_steps = -(-T // (chunk * n_together))
    missing = n_steps * n_together * chunk - T

    def cut(x: jax.Array, *heads: int) -> jax.Array:
        """[steps, chunks of a step, B, heads, C, ...]; what is missing at the end is zeros."""
        x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(B, n_steps, n_together, chunk, *heads, *x.shape[3:])
        return jnp.moveaxis(x, (1, 2, 3), (0, 1, 3 + len(heads)))

    def step(state: jax.Array, tokens: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return jax.lax.scan(one_chunk, state, _prepare(*tokens))

    def one_chunk(state: jax.Array, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, beta, sums, inverse, scores = parts
        # The head axis of q and k, shared by H / G heads, is a 1 here.
        reads = jnp.matmul(jnp.concatenate([k, q], axis=-2), state, precision=HIGHEST)
        known, read = jnp.split(jnp.exp(jnp.tile(sums, 2))[..., None] * reads, 2, axis=-2)
        wrong = jnp.matmul(inverse, beta[..., None] * (v - known), precision=HIGHEST)
        out = read + jnp.matmul(scores, wrong, precision=HIGHEST)
        left = jnp.exp(sums[..., -1:] - sums)[..., None]
        added = jnp.matmul(jnp.swapaxes(k, -1, -2), left * wrong, precision=HIGHEST)
        return jnp.exp(sums[..., -1])[..., None, None] * state + added, out

    tokens = (
        cut(q_BTGE, G, 1),
        cut(k_BTGE, G, 1),
        cut(v_BTHE, G, H // G),
        cut(decay_BTH, G, H // G),
        cut(beta_BTH, G, H // G),
    )
    state = state_BHEE.reshape(B, G, H // G, *state_BHEE.shape[2:])
    state, out = jax.lax.scan(step, state, tokens)
    out = jnp.moveaxis(out, (0, 1, 5), (1, 2, 3)).reshape(B, -1, H, E)[:, :T]
    return out, state.reshape(state_BHEE.shape)


def _prepare(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    decay: jax.Array,
    beta: jax.Array,
) -> tuple[jax.Array, ...]:
    """What chunks need that no memory enters into; axes [chunks, B, G, H / G, C, ...]."""
    q, k = _unit(q) * q.shape[-1] ** -0.5, _unit(k)
    n = q.shape[-2]
    products = jnp.matmul(
        jnp.concatenate([k, q], axis=-2), jnp.swapaxes(k, -1, -2), precision=HIGHEST
    )
    similar, scores = jnp.split(products, 2, axis=-2)
    sums = jnp.cumsum(decay.astype(jnp.float32), axis=-1)
    # Masked before the exponential: above the diagonal it would overflow.
    seen = jnp.expand_dims(jnp.tri(n, dtype=bool), range(sums.ndim - 1))
    between = jnp.exp(jnp.where(seen, sums[..., :, None] - sums[..., None, :], -jnp.inf))
    beta = beta.astype(jnp.float32)
    earlier = jnp.expand_dims(jnp.tri(n, k=-1, dtype=jnp.float32), range(sums.ndim - 1))
    system = earlier * beta[..., None] * similar * between
    return q, k, v.astype(jnp.float32), beta, sums, unit_lower_inverse(system), scores * between


def _unit(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + 1e-6)


def unit_lower_inverse(system: jax.Array) -> jax.Array:
    """(I + A)^-1 of strictly lower triangular matrices A.

    Blocks of 8 rows by substitution, then two neighbours at a time: the inverse of [[P, 0], [L, Q]]
    is [[P^-1, 0], [-Q^-1 L P^-1, Q^-1]]. This is as stable as substitution, where a product of
    (I + A^2)(I + A^4) ... cancels numbers up to binomial(n, n / 2).

    Args:
      system: [..., n, n] float32 A, n a power of two.

    Returns:
      [..., n, n] float32.
    """
    n = system.shape[-1]
    size = min(n, _BASE)
    assert n == power_of_two(n), n

    def blocks(size: int, below: int, every: int) -> jax.Array:
        """[..., blocks, size, size] those `below` the diagonal's."""
        starts = range(0, n - below * size, every * size)
        return jnp.stack(
            [system[..., i + below * size :, i : i + size][..., :size, :] for i in starts], axis=-3
        )

    base = blocks(size, 0, 1)
    rows: list[jax.Array] = []
    for i in range(size):
        row = jnp.broadcast_to(jnp.eye(size, dtype=base.dtype)[i], base[..., 0].shape)
        for j in range(i):
            row = row - base[..., i, j, None] * rows[j]
        rows.append(row)
    inverse = jnp.stack(rows, axis=-2)
    while size < n:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        low = jnp.matmul(blocks(size, 1, 2), first, precision=HIGHEST)
        low = -jnp.matmul(second, low, precision=HIGHEST)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([upper, jnp.concatenate([low, second], axis=-1)], axis=-2)
        size *= 2
    return inverse[..., 0, :, :]


def _chunks_together(
    n_heads: int, chunk: int, channels: int, n_chunks: int, most_floats: int
) -> int:
    """As many chunks as may be prepared at once, in steps of equal size."""
    most = max(1, most_floats // (n_heads * chunk * (4 * chunk + 2 * channels)))
    return math.ceil(n_chunks / math.ceil(n_chunks / most))
