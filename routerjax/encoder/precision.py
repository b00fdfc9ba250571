"""What computing in bfloat16 or float16 changes: an encoder's states beside those in float32."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.selection import ALL, Selection

logger = logging.getLogger(__name__)

# Float32 parameters that may lie beside the encoder's own while both are there.
MOST_BYTES = 8 * 2**30


def dtype_errors(
    encoder: Encoder, queries: Sequence[str], poolings: Sequence[str] = ("last", "mean")
) -> dict[str, Any] | None:
    """Relative error of each hidden state against the same encoder in float32.

    For hidden state l, over queries and poolings: sqrt(sum |h - h32|^2 / sum |h32|^2), where h32
    is computed from the checkpoint's weights in float32 with products at the highest precision. The
    rounding of the weights is part of it.

    Args:
      encoder: In bfloat16 or float16. It is loaded once more, from where it came from.
      queries: A handful of texts.
      poolings: Names out of POOLINGS.

    Returns:
      JSON values: `encoder_id`, `compute_dtype`, `n_queries`, `poolings` and `relative_error`, one
      number a hidden state. None where the encoder computes in float32, or where its parameters in
      float32 would take more than 8 GiB, which is logged.

    Raises:
      ValueError: No queries, or other weights lie now where the encoder came from.
      OSError: It is no longer there.

    Example:
      >>> rj.dtype_errors(encoder, data.queries[:32])["relative_error"]
    """
    identity = encoder.identity
    if not queries:
        raise ValueError("queries: expected a few texts, got none")
    if identity["compute_dtype"] == "float32":
        return None
    if 4 * encoder.n_parameters > MOST_BYTES:
        logger.info(
            "%s: its error in %s is not measured: in float32 its parameters take %.1f GiB",
            identity["encoder_id"], identity["compute_dtype"], 4 * encoder.n_parameters / 2**30,
        )  # fmt: skip
        return None
    exact = Encoder.from_identity(identity | {"compute_dtype": "float32"}, mesh=encoder.mesh)
    if exact.identity["weights_digest"] != identity["weights_digest"]:
        raise ValueError(
            f"encoder: other weights lie at {identity['encoder_id']} now than this encoder has"
        )
    prompts = encoder.prompter(queries)
    selection = Selection.of(ALL, poolings, encoder.n_states)
    h_NLPD, exact_NLPD = (
        e.capture_prompts(prompts, selection).astype(np.float64) for e in (encoder, exact)
    )
    error_L = np.square(h_NLPD - exact_NLPD).sum(axis=(0, 2, 3))
    size_L = np.square(exact_NLPD).sum(axis=(0, 2, 3))
    return {
        "encoder_id": identity["encoder_id"],
        "compute_dtype": identity["compute_dtype"],
        "n_queries": len(queries),
        "poolings": list(poolings),
        "relative_error": np.sqrt(error_L / size_L).tolist(),
    }
