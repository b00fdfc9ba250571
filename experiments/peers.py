"""What routerjax is measured against, in PyTorch: the published ways of doing the same work."""

import time
from typing import Any

import numpy as np

import routerjax as rj


def hugging_face_loop(folder: str, queries: tuple[str, ...], max_tokens: int) -> Any:
    """The published capture: batches of 4 in file order, every state kept, pooled row by row.

    Args:
      folder: A Hugging Face model without a chat template.
      queries: N texts.
      max_tokens: Where longer ones are cut.

    Returns:
      A function of a slice of the queries that returns h_NLPD (last and mean), as `capture` does.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    def run(rows: slice) -> np.ndarray:
        pooled = []
        texts = list(queries[rows])
        for start in range(0, len(texts), 4):
            batch = tokenizer(texts[start : start + 4], return_tensors="pt", padding=True,
                              truncation=True, max_length=max_tokens)  # fmt: skip
            with torch.no_grad():
                states = model(**batch, output_hidden_states=True).hidden_states
            for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
                real = [state[row, :length] for state in states]
                rows_LP = [torch.stack([h[-1], h.mean(0)]) for h in real]
                pooled.append(torch.stack(rows_LP).numpy())
        return np.stack(pooled)

    return run


def torch_ensemble(arrays: list[np.ndarray], config: rj.TrunkConfig) -> tuple[float, np.ndarray]:
    """The published training, member by member; same rows, masks, optimiser and early stopping.

    Args:
      arrays: x_train_NC, y_train_NM, x_val_NC, y_val_NM.
      config: The ensemble.

    Returns:
      Seconds, and the best validation loss of every member.
    """
    import torch
    from torch import nn

    x, y, x_val, y_val = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)

    def bce(logits: Any, target: Any) -> Any:
        seen = ~target.isnan()
        return nn.functional.binary_cross_entropy_with_logits(logits[seen], target[seen])

    best = []
    start = time.perf_counter()
    for seed in config.seeds:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        width = x.shape[1]
        for hidden, share in zip(config.hidden, config.dropout, strict=True):
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(share)]
            width = hidden
        net = nn.Sequential(*layers, nn.Linear(width, y.shape[1]))
        optimiser = torch.optim.Adam(net.parameters(), config.learning_rate, weight_decay=config.l2)
        lowest, waited = np.inf, 0
        for _ in range(config.epochs):
            net.train()
            order = torch.randperm(len(x))
            for at in order.split(config.batch_size):
                optimiser.zero_grad()
                bce(net(x[at]), y[at]).backward()
                optimiser.step()
            net.eval()
            with torch.no_grad():
                loss = bce(net(x_val), y_val).item()
            waited = 0 if loss < lowest - config.min_delta else waited + 1
            lowest = loss if waited == 0 else lowest
            if waited >= config.patience:
                break
        best.append(lowest)
    return time.perf_counter() - start, np.array(best)
