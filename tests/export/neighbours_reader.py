"""Reads the neighbours' checkpoints as INTEGRATIONS.md describes them: torch and NumPy alone."""

import numpy as np
import torch


def read_switchyard(path, h_of_layer):
    """P(correct) of [N, H] last-token states by layer."""
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["format_version"] == 1
    assert checkpoint["encoder"]["view"] == "task_prompt_only"
    assert checkpoint["architecture"] == {
        "activation": "ReLU", "ensemble_reduction": "mean(sigmoid(logits))"}  # fmt: skip
    pipeline = checkpoint["feature_pipeline"]
    assert pipeline["pooling"] == "mean of independently standardized selected layers"
    selected = pipeline["selected_layers"]
    assert selected and len(set(selected)) == len(selected)
    z = []
    for layer in selected:
        mean, std = (pipeline[name][str(layer)] for name in ("layer_mean", "layer_std"))
        assert mean.shape == std.shape == (checkpoint["encoder"]["hidden_dim"],)
        assert (std > 0).all()
        z.append((torch.tensor(h_of_layer[layer]) - mean) / std)
    x = (torch.stack(z).mean(dim=0) - pipeline["scaler_mean"]) / pipeline["scaler_scale"]
    x = (x - pipeline["pca_mean"]) @ pipeline["pca_components"].T
    members = []
    for state in checkpoint["model_state_dicts"]:
        assert all(tensor.dtype == torch.float32 for tensor in state.values())
        n = len(checkpoint["models"])
        assert len(state) == 4 * n + 2
        logits = []
        for k in range(n):
            a = torch.relu(x @ state[f"adapters.{k}.weight"].T + state[f"adapters.{k}.bias"])
            a = torch.relu(a @ state["trunk.0.weight"].T + state["trunk.0.bias"])
            logits.append(a @ state[f"heads.{k}.weight"].T + state[f"heads.{k}.bias"])
        members.append(torch.sigmoid(torch.cat(logits, dim=1)))
    return checkpoint, torch.stack(members).mean(dim=0).numpy()


def features(transform, h_of_site):
    spec = transform["feature_spec"]
    assert spec["hidden_state_indexing"] == "direct"
    assert (spec["aggregation"] == "single_layer") == (len(spec["layers"]) == 1)
    raw = np.concatenate([h_of_site[i, spec["pooling"]] for i in spec["layers"]], axis=1)
    return transform["pca"].transform(transform["scaler"].transform(raw))


def read_blueprint(path, h_of_site):
    """P(correct) of [N, H] states by (layer, pooling)."""
    checkpoint = torch.load(path, weights_only=False)
    names, config = checkpoint["model_names"], checkpoint["trunk_config"]
    assert config["n_outputs"] == len(names) and set(checkpoint["transforms"]) == set(names)
    read = {"shared_once": names[:1], "per_target": names}[config["feature_layout"]]
    x = np.hstack([features(checkpoint["transforms"][name], h_of_site) for name in read])
    assert x.shape[1] == config["d_in"]
    members = []
    for state in checkpoint["shared_trunk"]:
        linear = torch.nn.Linear
        sizes = [config["d_in"], *config["hidden"], config["n_outputs"]]
        first, second, third = (linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        drop, relu = torch.nn.Dropout(0.5), torch.nn.ReLU()
        net = torch.nn.ModuleDict(
            {"net": torch.nn.Sequential(first, relu, drop, second, relu, drop, third)}
        )
        net.load_state_dict(state)
        with torch.no_grad():
            out = net.eval()["net"](torch.tensor(x, dtype=torch.float32))
        members.append(torch.sigmoid(out).numpy())
    return checkpoint, np.mean(members, axis=0)
