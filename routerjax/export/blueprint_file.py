"""blueprint: a router as a checkpoint of NVIDIA's LLM Router blueprint."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from routerjax.export.neighbours import checked, in_words, linears, package, refuse, write
from routerjax.features.part import Part
from routerjax.routing.router import Router


def blueprint(router: Router, path: Any, *, uncalibrated: bool = False) -> list[str]:
    """Writes a checkpoint, version 3, of NVIDIA's LLM Router blueprint (`model_router_toolkit`).

    A router maps where it reads layers of one causal encoder in one pooling, last or mean (as
    `Recipe.all_layers` and `Recipe.layers` do), or for each target such a layer
    (`Recipe.per_target`), but never the encoder's last state, which the blueprint does not read;
    and where it has a trunk with two hidden layers, no kernel, and prices.

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
    _refuse_last_state(router, router.encoders[0].config.n_layers)
    torch, parts, names = package("torch"), router.features.parts, router.targets
    shared, at_M = len(parts) == 1, _part_of_target(router)
    transforms = [_transform(router, part) for part in parts]
    at_X = at_M[:1] if shared else at_M  # Whose features the trunk reads, one behind the other.
    members = []
    for k in range(router.trunk.n_members):
        (weight_HC, bias_H), *behind = linears(router, k, scale_M, shift_M)
        layers = [(_spread(weight_HC, parts, at_X), bias_H), *behind]
        members.append({
            f"net.{i}.{name}": torch.from_numpy(array)
            for i, layer in zip((0, 3, 6), layers, strict=True)
            for name, array in zip(("weight", "bias"), layer, strict=True)
        })  # fmt: skip
    write(path, {
        "model_names": list(names),
        "transforms": {name: transforms[i] for name, i in zip(names, at_M, strict=True)},
        "trunk_config": {
            "d_in": sum(parts[i].width for i in at_X),
            "n_outputs": len(names),
            "hidden": list(router.trunk.hidden),
            "feature_layout": "shared_once" if shared else "per_target",
        },
        "shared_trunk": members,
        **_costs(router),
    })  # fmt: skip
    return [
        *notes,
        "The blueprint takes the lowest input price among the targets within its own tolerance of "
        f"the largest probability: the router's policy ({router.policy}) is not in the file.",
        "The blueprint cuts the end off a prompt of more than 2,048 tokens, routerjax the middle "
        "of the query beyond "
        f"{router.encoder_identities[0]['max_tokens']:,}: there the two differ.",
    ]


def _why_not(router: Router) -> list[str]:
    """Why a router's features and prices do not map; empty where they do."""
    features, prices_M2, reasons = router.features, router.costs.prices_M2, []
    poolings = [{pooling for _, pooling in part.sites} for part in features.parts]
    alike = all(len(names) == 1 and names <= {"last", "mean"} for names in poolings)
    averaged, n_parts = features.recipe.kind == "averaged_layers", len(features.parts)
    if features.n_encoders > 1 or averaged or not alike or n_parts > len(router.targets):
        layers = sorted({layer for part in features.parts for layer, _ in part.sites})
        reasons.append(
            f"features: it reads {in_words(router)}; the format reads concatenated layers of one "
            f"encoder in one pooling, last or mean, or a layer for each target: train with "
            f"Recipe.layers({layers}, 'mean') (--recipe=layers:{'+'.join(map(str, layers))} "
            f"--pooling=mean) or Recipe.per_target() (--recipe=per_target:cv_auc "
            f"--pooling=last,mean)"
        )
    if prices_M2 is None or np.isnan(prices_M2).any():
        reasons.append(
            "prices: the blueprint takes the lowest input price within its tolerance, and some or "
            "all prices are unknown: train with a pool.json that has one for every target"
        )
    return reasons


def _refuse_last_state(router: Router, n_layers: int) -> None:
    """Refuses the state behind the last of n_layers blocks."""
    read = router.features.selection()
    if max(read.layers) < n_layers:
        return
    others = "+".join(str(layer) for layer in read.layers if layer < n_layers) or n_layers - 1
    refuse("blueprint", [
        f"features: the blueprint reads hidden states 0 to {n_layers - 1} of this encoder and "
        f"never the last one, {n_layers}: train with --recipe=layers:{others}, or on a store "
        f"without it (extract --layers=0-{n_layers - 1})"
    ])  # fmt: skip


def _part_of_target(router: Router) -> list[int]:
    """[M] whose features stand at each target: those it chose; every part is some target's."""
    parts, names = router.features.parts, router.targets
    place = {part.sites: i for i, part in enumerate(parts)}
    chose = {
        choice["target"]: ((choice["layer"], choice["pooling"]),)
        for choice in router.training.get("choices", ())
        if "target" in choice
    }
    in_turn = [m % len(parts) for m in range(len(names))]
    own = [place.get(chose.get(name, ()), m) for name, m in zip(names, in_turn, strict=True)]
    return own if len(set(own)) == len(parts) else in_turn


def _spread(weight_HC: np.ndarray, parts: Sequence[Part], at_X: Sequence[int]) -> np.ndarray:
    """The first layer's weights [H, X] for the features of parts `at_X`, some of them repeated.

    Those of a part stand where it comes first; where it comes again they are 0.
    """
    ends = np.cumsum([part.width for part in parts])[:-1]
    pieces = np.split(weight_HC, ends, axis=1)
    columns = [
        pieces[i] if i not in at_X[:x] else np.zeros_like(pieces[i]) for x, i in enumerate(at_X)
    ]
    return np.concatenate(columns, axis=1)


def _transform(router: Router, part: Part) -> dict[str, Any]:
    """A part as the blueprint has it."""
    identity, layers = router.encoder_identities[0], [layer for layer, _ in part.sites]
    scaler, pca = _scikit_learn(part, router.training)
    return {
        "encoder": identity["encoder_id"],
        "layer": layers[-1],
        "mode": part.sites[0][1],
        "scaler": scaler,
        "pca": pca,
        "chat_template_kwargs": identity["chat_template_kwargs"] or {},
        "feature_spec": {
            "layers": layers,
            "pooling": part.sites[0][1],
            "aggregation": "single_layer" if len(layers) == 1 else "all_layers_concat",
            "hidden_state_indexing": "direct",
        },
    }


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


def _scikit_learn(part: Part, notes: dict[str, Any]) -> tuple[Any, Any]:
    """A part as a StandardScaler and a PCA; `notes` are those of the training."""
    preprocessing, decomposition = map(package, ("sklearn.preprocessing", "sklearn.decomposition"))
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
