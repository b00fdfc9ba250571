"""What the trunk is measured against: the published training in torch, member by member."""

from typing import Any

import numpy as np

import routerjax as rj


def torch_ensemble(
    arrays: list[np.ndarray], config: rj.TrunkConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The published training, member by member; same rows, masks, optimiser and early stopping.

    Args:
      arrays: x_train_NC, y_train_NM, x_val_NC, y_val_NM.
      config: The ensemble.

    Returns:
      The best validation loss of every member, and the epochs it took.
    """
    import torch
    from torch import nn

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y, x_val, y_val = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays)

    def bce(logits: Any, target: Any) -> Any:
        seen = ~target.isnan()
        return nn.functional.binary_cross_entropy_with_logits(logits[seen], target[seen])

    best: list[float] = []
    epochs: list[int] = []
    for seed in config.seeds:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        width = x.shape[1]
        for hidden, share in zip(config.hidden, config.dropout, strict=True):
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(share)]
            width = hidden
        net = nn.Sequential(*layers, nn.Linear(width, y.shape[1])).to(device)
        optimiser = torch.optim.Adam(net.parameters(), config.learning_rate, weight_decay=config.l2)
        lowest, waited = np.inf, 0
        epochs.append(0)
        for _ in range(config.epochs):
            net.train()
            order = torch.randperm(len(x), device=device)
            for at in order.split(config.batch_size):
                optimiser.zero_grad()
                bce(net(x[at]), y[at]).backward()
                optimiser.step()
            net.eval()
            with torch.no_grad():
                loss = bce(net(x_val), y_val).item()
            epochs[-1] += 1
            waited = 0 if loss < lowest - config.min_delta else waited + 1
            lowest = loss if waited == 0 else lowest
            if waited >= config.patience:
                break
        best.append(lowest)
    return np.array(best), np.array(epochs)
