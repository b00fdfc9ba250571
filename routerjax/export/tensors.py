"""safetensors: a router's arrays, and a JSON that says in words what to compute with them."""

import hashlib
from typing import Any

import numpy as np
from safetensors.numpy import save

from routerjax.export.words import formula
from routerjax.routing.router import Router
from routerjax.runtime.files import Folder

FORMAT_VERSION = 1
ARRAYS, DESCRIPTION = "model.safetensors", "model.json"


def safetensors(router: Router, path: Any) -> None:
    """Writes a router for readers in any language: model.safetensors and model.json.

    model.json holds the formula from pooled hidden states to the chosen target in words, in the
    names of the arrays and of its own fields. It is written last and holds the SHA-256 digest of
    the arrays: a folder without it holds no export.

    Args:
      router: The router.
      path: The folder, local or a URL; an export already there is replaced.

    Raises:
      ValueError: The router's policy has not been fitted, or is one of its user's own.
      OSError: The folder cannot be written.

    Example:
      >>> rj.export.safetensors(router, "exported/")
    """
    folder, data = Folder(path), save(_arrays(router))
    description = _description(router, hashlib.sha256(data).hexdigest())
    folder.delete(DESCRIPTION)
    folder.write_bytes(ARRAYS, data)
    folder.write_json(DESCRIPTION, description)


def _arrays(router: Router) -> dict[str, np.ndarray]:
    """The arrays under the names by which the formula calls them."""
    arrays = {f"trunk.{name}": array for name, array in router.trunk.params.items()}
    for i, part in enumerate(router.features.parts):
        named = (part.mean_SD, part.scale_SD, part.components_SDC)
        for name, array in zip(("mean", "scale", "components"), named, strict=True):
            arrays[f"features.{i}.{name}"] = array
    if (kernel := router.kernel) is not None:
        # Targets that were added later have no column, and no share either.
        missing = len(kernel.share_M) - kernel.alpha_NM.shape[1]
        arrays |= {
            "kernel.x": kernel.x_NC,
            "kernel.alpha": np.pad(kernel.alpha_NM, ((0, 0), (0, missing))),
            "kernel.mean": kernel.mean_M,
            "kernel.share": kernel.share_M,
        }
    if (trust := router.trust) is not None:
        arrays |= {
            "trust.within": trust.metric.within_CC,
            "trust.centres": trust.metric.centres_GC,
            "trust.middle": trust.metric.middle_C,
            "trust.all": trust.metric.all_CC,
            "trust.usual": trust.usual_M,
        }
    if "head" in router.costs.sources and (head := router.costs.head) is not None:
        arrays |= {
            "lengths.weight": head.weight_CM,
            "lengths.bias": head.bias_M,
            "lengths.smear": head.smear_M,
            "lengths.range": head.range_M2,
        }
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def _description(router: Router, sha256: str) -> dict[str, Any]:
    """model.json."""
    features = router.features
    kernel, limits, trust = router.kernel, router.limits, router.trust
    return {
        "format": "routerjax router",
        "format_version": FORMAT_VERSION,
        "arrays": {"file": ARRAYS, "sha256": sha256},
        "formula": formula(router),
        "targets": router.targets,
        "encoders": router.encoder_identities,
        "parts": [{"encoder": part.encoder, "sites": part.sites} for part in features.parts],
        "n_hidden": len(router.trunk.hidden),
        **({} if kernel is None else {"kernel_width": kernel.width}),
        "calibration": [
            {name: getattr(curve, name) for name in ("method", "slope", "shift", "knots")}
            for curve in router.calibration.curves
        ],
        **({} if trust is None else {"trust_knots": trust.knots, "trust_n_level": trust.n_level}),
        "costs": _costs(router),
        **({} if limits is None else {"limits": limits.to_json()}),
        "policy": router.policy.to_json(),
    }


def _costs(router: Router) -> list[dict[str, Any]]:
    """What the cost of an answer of each target is made of."""
    costs, m = router.costs, len(router.targets)
    unknown_M = np.full(m, np.nan)
    prices_M2 = np.full((m, 2), np.nan) if costs.prices_M2 is None else costs.prices_M2
    bills = costs.bills
    columns = {
        "input_price": prices_M2[:, 0],
        "output_price": prices_M2[:, 1],
        "cached_input_price": unknown_M if bills is None else bills.cached_prices_M,
        "cached_share": np.zeros(m) if bills is None else bills.cached_share_M,
        "extra_input_tokens": np.zeros(m) if bills is None else bills.extra_tokens_M,
        "output_tokens": costs.output_tokens_M,
        "output_tokens_from": costs.sources,
        "mean_cost": unknown_M if bills is None else bills.cost_M,
    }
    return [{name: column[i] for name, column in columns.items()} for i in range(m)]
