"""blueprint: a router as a checkpoint of NVIDIA's LLM Router blueprint."""

from typing import Any

import numpy as np

from routerjax.export.neighbours import checked, in_words, linears, package, refuse, write
from routerjax.routing.router import Router


def blueprint(router: Router, path: Any, *, uncalibrated: bool = False) -> list[str]:
    """Writes a checkpoint, version 3, of NVIDIA's LLM Router blueprint (`model_router_toolkit`).

    A router maps where it reads layers of one causal encoder in one pooling, last or mean (as
    `Recipe.all_layers` does of a store without the encoder's last state, which the blueprint never
    reads), and has a trunk with two hidden layers, no kernel, and prices.

    The file is a pickle with objects of scikit-learn: it is read by versions of scikit-learn like
    the one that it was written with, and should be opened by those alone who trust its writer.

    Args:
      router: The router. Its encoder is loaded, to compare prompts.
      path: The file, local or a URL; written whole or not at all. The blueprint wants it to end in
        .pt.
      uncalibrated: As in `switchyard`.

    Returns:
      What the file does not carry, in sentences for its users.

    Raises:
      ValueError: The router does not map; names each reason and what to train instead. Or torch or
        scikit-learn is not installed.
      OSError: The encoder cannot be loaded, or the file not be written.
    """
    scale_M, shift_M, notes = checked(router, "blueprint", _why_not(router), uncalibrated)
    torch, (part,), identity = package("torch"), router.features.parts, router.encoder_identities[0]
    layers, pooling = [layer for layer, _ in part.sites], part.sites[0][1]
    _refuse_last_state(layers, pooling, router.encoders[0].config.n_layers)
    scaler, pca = _scikit_learn(router)
    transform = {
        "encoder": identity["encoder_id"],
        "layer": layers[-1],
        "mode": pooling,
        "scaler": scaler,
        "pca": pca,
        "chat_template_kwargs": identity["chat_template_kwargs"] or {},
        "feature_spec": {
            "layers": layers,
            "pooling": pooling,
            "aggregation": "single_layer" if len(layers) == 1 else "all_layers_concat",
            "hidden_state_indexing": "direct",
        },
    }
    write(path, {
        "model_names": list(router.targets),
        "transforms": dict.fromkeys(router.targets, transform),
        "trunk_config": {
            "d_in": router.trunk.n_features,
            "n_outputs": len(router.targets),
            "hidden": list(router.trunk.hidden),
            "feature_layout": "shared_once",
        },
        "shared_trunk": [
            {
                f"net.{i}.{name}": torch.from_numpy(array)
                for i, layer in zip((0, 3, 6), linears(router, k, scale_M, shift_M), strict=True)
                for name, array in zip(("weight", "bias"), layer, strict=True)
            }
            for k in range(router.trunk.n_members)
        ],
        **_costs(router),
    })  # fmt: skip
    return [
        *notes,
        "The blueprint takes the lowest input price among the targets within its own tolerance of "
        f"the largest probability: the router's policy ({router.policy}) is not in the file.",
        "The blueprint cuts the end off a prompt of more than 2,048 tokens, routerjax the middle "
        "of the query.",
    ]


def _why_not(router: Router) -> list[str]:
    """Why a router's features and prices do not map; empty where they do."""
    features, prices_M2, reasons = router.features, router.costs.prices_M2, []
    sites = {site for part in features.parts for site in part.sites}
    poolings = {pooling for _, pooling in sites}
    alike = len(features.parts) == 1 and features.recipe.kind != "averaged_layers"
    if not alike or len(poolings) > 1 or not poolings <= {"last", "mean"}:
        layers = sorted({layer for layer, _ in sites})
        reasons.append(
            f"features: it reads {in_words(router)}; the format reads the concatenated layers of "
            f"one encoder in one pooling, last or mean: train with Recipe.layers({layers}, 'mean') "
            f"(--recipe=layers:{'+'.join(map(str, layers))} --pooling=mean)"
        )
    if prices_M2 is None or np.isnan(prices_M2).any():
        reasons.append(
            "prices: the blueprint takes the lowest input price within its tolerance, and some or "
            "all prices are unknown: train with a pool.json that has one for every target"
        )
    return reasons


def _refuse_last_state(layers: list[int], pooling: str, n_layers: int) -> None:
    """Refuses the state behind the last block."""
    if max(layers) < n_layers:
        return
    read = layers[:-1] or [n_layers - 1]
    refuse("blueprint", [
        f"features: the blueprint reads hidden states 0 to {n_layers - 1} of this encoder and "
        f"never the last one, {n_layers}: train with Recipe.layers({read}, {pooling!r}) "
        f"(--recipe=layers:{'+'.join(map(str, read))} --pooling={pooling})"
    ])  # fmt: skip


def _costs(router: Router) -> dict[str, Any]:
    """Lengths and prices as the blueprint has them."""
    costs, names = router.costs, router.targets
    assert costs.prices_M2 is not None
    tokens = zip(names, costs.output_tokens_M.tolist(), strict=True)
    prices = zip(names, costs.prices_M2.tolist(), strict=True)
    return {
        "cost_table": {name: {"median_output_tokens": count} for name, count in tokens},
        "pool_config": {
            "targets": [
                {"name": name, "cost_per_m_input_tokens": per_input,
                 "cost_per_m_output_tokens": per_output}
                for name, (per_input, per_output) in prices
            ],
        },
    }  # fmt: skip


def _scikit_learn(router: Router) -> tuple[Any, Any]:
    """The only part as a StandardScaler and a PCA."""
    preprocessing, decomposition = map(package, ("sklearn.preprocessing", "sklearn.decomposition"))
    (part,), notes = router.features.parts, router.training
    n_rows = notes.get("n_queries", 0) - notes.get("n_validation", 0)
    scaler, pca = preprocessing.StandardScaler(), decomposition.PCA(n_components=part.width)
    scaler.mean_ = part.mean_SD.reshape(-1).astype(np.float64)
    scaler.scale_ = part.scale_SD.reshape(-1).astype(np.float64)
    scaler.var_ = np.square(scaler.scale_)
    scaler.n_samples_seen_ = n_rows
    pca.components_ = part.components_SDC.reshape(-1, part.width).T.astype(np.float64)
    pca.mean_ = np.zeros(scaler.mean_.shape)
    pca.explained_variance_ = part.eigenvalues_C.astype(np.float64)
    pca.explained_variance_ratio_ = pca.explained_variance_ / part.total_variance
    pca.singular_values_ = np.sqrt(pca.explained_variance_ * max(n_rows - 1, 0))
    pca.noise_variance_, pca.n_components_, pca.n_samples_ = 0.0, part.width, n_rows
    scaler.n_features_in_ = pca.n_features_in_ = scaler.mean_.size
    return scaler, pca
