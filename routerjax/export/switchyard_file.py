"""switchyard: a router as a checkpoint of NVIDIA NeMo Switchyard's route `prefill_router`."""

from typing import Any

import numpy as np

from routerjax.export.neighbours import checked, in_words, linears, package, write
from routerjax.features.part import Part
from routerjax.routing.router import Router

# Divides what a column that is constant in one layer deviates from its mean.
_NEVER = np.float32(1e30)


def switchyard(router: Router, path: Any, *, uncalibrated: bool = False) -> list[str]:
    """Writes a checkpoint for Switchyard's route `prefill_router`.

    A router maps where it reads one layer (`Recipe.layers([16], "last")`), or the mean of several
    (`Recipe.averaged_layers`), with the pooling last, of one causal encoder whose prompt
    transformers makes alike, and has a trunk with two hidden layers and no kernel.

    The format has no calibration. That of a single member (`--members=1`) is folded into its last
    layer, which is exact for temperature and platt between probabilities of 1e-7 and 1 - 1e-7; a
    mean of several sigmoids cannot hold one.

    Args:
      router: The router. Its encoder is loaded, to compare prompts.
      path: The file, local or a URL; written whole or not at all.
      uncalibrated: Whether to leave out a calibration that the format cannot hold, and a trust.

    Returns:
      What the file does not carry, in sentences for its users.

    Raises:
      ValueError: The router does not map; names each reason and what to train instead. Or torch is
        not installed.
      OSError: The encoder cannot be loaded, or the file not be written.

    Example:
      >>> rj.export.switchyard(router, "router.pt")
    """
    scale_M, shift_M, notes = checked(router, "switchyard", _why_not(router), uncalibrated)
    torch, (part,), identity = package("torch"), router.features.parts, router.encoder_identities[0]
    components_DC, scale_SD = _of_mean(part)
    hidden = part.mean_SD.shape[1]

    def by_layer(value_SD: np.ndarray) -> dict[str, Any]:
        rows = zip(part.sites, value_SD, strict=True)
        return {str(layer): torch.tensor(row_D) for (layer, _), row_D in rows}

    write(path, {
        "format_version": 1,
        "encoder": {
            "name": identity["encoder_id"],
            "n_layers": router.encoders[0].config.n_layers,
            "hidden_dim": hidden,
            "view": "task_prompt_only",
        },
        "architecture": {"activation": "ReLU", "ensemble_reduction": "mean(sigmoid(logits))"},
        "models": list(router.targets),
        "feature_pipeline": {
            "pooling": "mean of independently standardized selected layers",
            "selected_layers": [layer for layer, _ in part.sites],
            "layer_mean": by_layer(part.mean_SD),
            "layer_std": by_layer(scale_SD),
            "scaler_mean": torch.zeros(hidden),
            "scaler_scale": torch.ones(hidden),
            "pca_mean": torch.zeros(hidden),
            "pca_components": torch.tensor(components_DC.T),
        },
        "model_state_dicts": [
            _member(torch, linears(router, k, scale_M, shift_M), len(router.targets))
            for k in range(router.trunk.n_members)
        ],
    })  # fmt: skip
    return [
        *notes,
        "Switchyard takes the target of the largest probability: prices and the router's policy "
        f"({router.policy}) are not in the file.",
        "Switchyard cuts the end off a prompt that is longer than its max_length, routerjax the "
        f"middle of the query beyond {identity['max_tokens']:,} tokens: there the two differ.",
    ]


def _why_not(router: Router) -> list[str]:
    """Why a router's features do not map; empty where they do."""
    features, reasons = router.features, []
    sites = {site for part in features.parts for site in part.sites}
    alone = len(sites) == 1 or features.recipe.kind == "averaged_layers"
    if len(features.parts) > 1 or not alone or {pooling for _, pooling in sites} != {"last"}:
        layers = sorted({layer for layer, _ in sites})
        reasons.append(
            f"features: it reads {in_words(router)}; the format reads the pooling last of one "
            f"layer, or of the mean of several: train with Recipe.layers([{layers[-1]}], 'last') "
            f"(--recipe=layers:{layers[-1]} --pooling=last) or Recipe.averaged_layers({layers}, "
            f"'last') (--recipe=averaged_layers:{'+'.join(map(str, layers))} --pooling=last)"
        )
    if settings := router.encoder_identities[0]["chat_template_kwargs"]:
        reasons.append(
            f"chat_template_kwargs: the format has no place for {settings}: extract the states "
            f"anew without them"
        )
    return reasons


def _member(
    torch: Any, layers: list[tuple[np.ndarray, np.ndarray]], n_targets: int
) -> dict[str, Any]:
    """A member's parameters as Switchyard names them; each target has the same adapter."""
    adapter, trunk, head = (
        dict(zip(("weight", "bias"), map(torch.from_numpy, layer), strict=True)) for layer in layers
    )
    state = {f"trunk.0.{name}": tensor for name, tensor in trunk.items()}
    for m in range(n_targets):
        state |= {f"adapters.{m}.{name}": tensor for name, tensor in adapter.items()}
        state |= {f"heads.{m}.{name}": tensor[m : m + 1] for name, tensor in head.items()}
    return state


def _of_mean(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Components [D, C] of the mean of standardised layers, and the layers' scales [S, D].

    Of a single layer its own. A column that is constant in a layer counts for nothing there, for
    which its scale is huge.
    """
    at_D = np.abs(part.components_SDC).max(axis=2).argmax(axis=0)
    components_DC = part.components_SDC[at_D, np.arange(len(at_D))]
    silent_SD = ~part.components_SDC.any(axis=2) & components_DC.any(axis=1)[None]
    scale_SD = np.where(silent_SD, _NEVER, part.scale_SD)
    return len(part.sites) * components_DC, scale_SD
