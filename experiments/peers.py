"""What routerjax is measured against, in PyTorch: the published ways of doing the same work."""

import time
from collections.abc import Callable, Sequence
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


def states(store: rj.ActivationStore, data: rj.RoutingDataset) -> np.ndarray:
    """x_LPND of all layers and poolings, rows as in the data."""
    blocks = [h_LPRD for _, h_LPRD in store.blocks()]
    return np.concatenate(blocks, axis=2)[:, :, store.rows_of(data.ids)]


def scikit_learn_cells(
    store: rj.ActivationStore, data: rj.RoutingDataset, pca_dims: Sequence[int]
) -> Callable[[np.ndarray], tuple[np.ndarray, float, float]]:
    """The published score of a cell: scaler, PCA and LogisticRegression(C=1) in each of 5 folds.

    Args:
      store: The hidden states.
      data: The rows; folds are those of routerjax, so that both sit the same exam.
      pca_dims: Widths.

    Returns:
      A function of cells [n, 4] (layer, pooling, width, target, as places) that returns their mean
      AUC [n] and the seconds spent on scaler and PCA, and on regression and AUC.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    x_LPND = states(store, data)
    row_of = {name: row for row, name in enumerate(data.ids)}
    folds = [[[row_of[name] for name in part.ids] for part in pair] for pair in data.folds(5)]
    correct_NM = data.correct_NM

    def run(cells_n4: np.ndarray) -> tuple[np.ndarray, float, float]:
        auc, seconds = [], [0.0, 0.0]
        for layer, pooling, width, target in cells_n4:
            x_ND = x_LPND[layer, pooling]
            n_components = pca_dims[width]
            if n_components > min(x_ND.std(axis=0).astype(bool).sum(), len(x_ND)):
                auc.append(np.nan)
                continue
            fold_auc = []
            for fit, test in folds:
                start = time.perf_counter()
                scaler = StandardScaler().fit(x_ND[fit])
                # svd_solver="full" was the fastest of them here, and is exact.
                pca = PCA(n_components, svd_solver="full").fit(scaler.transform(x_ND[fit]))
                z_fit, z_test = (pca.transform(scaler.transform(x_ND[at])) for at in (fit, test))
                seconds[0] += time.perf_counter() - start
                start = time.perf_counter()
                y_fit, y_test = correct_NM[fit, target], correct_NM[test, target]
                seen_fit, seen_test = np.isfinite(y_fit), np.isfinite(y_test)
                model = LogisticRegression(C=1, max_iter=500).fit(z_fit[seen_fit], y_fit[seen_fit])
                score = model.decision_function(z_test[seen_test])
                fold_auc.append(roc_auc_score(y_test[seen_test], score))
                seconds[1] += time.perf_counter() - start
            auc.append(np.mean(fold_auc))
        return np.array(auc), seconds[0], seconds[1]

    return run


def ternary_evaluations(auc_LPWM: np.ndarray) -> int:
    """Cells that the published ternary search over layers looks at, for every other choice.

    Args:
      auc_LPWM: What it would find there.
    """
    count = 0
    for auc_L in np.nan_to_num(auc_LPWM).reshape(len(auc_LPWM), -1).T:
        seen: set[int] = set()
        low, high = 0, len(auc_L) - 1
        while high - low > 2:
            third = (high - low) // 3
            a, b = low + third, high - third
            seen |= {a, b}
            low, high = (a, high) if auc_L[a] < auc_L[b] else (low, b)
        count += len(seen | set(range(low, high + 1)))
    return count


def numpy_probes(
    x_LPND: np.ndarray, y_NM: np.ndarray, share: bool
) -> tuple[np.ndarray, np.ndarray]:
    """J (trace, standardised) and d_eff by loops in float64.

    Args:
      x_LPND: States.
      y_NM: 1 = correct, 0 = wrong, NaN = not observed.
      share: Whether targets share the standardised states and the spectrum of a (layer, pooling),
        or compute them anew, as a loop over (layer, pooling, target) does that calls a function.

    Returns:
      J [L, P, M] and d_eff [L, P].
    """
    n_layers, n_poolings = x_LPND.shape[:2]
    j_LPM = np.full((n_layers, n_poolings, y_NM.shape[1]), np.nan)
    d_eff_LP = np.full((n_layers, n_poolings), np.nan)

    def prepare(x_ND: np.ndarray) -> tuple[np.ndarray, float]:
        x_ND = x_ND.astype(np.float64)
        deviation_D = x_ND.std(axis=0)
        x_ND = (x_ND - x_ND.mean(axis=0)) / np.where(deviation_D > 0, deviation_D, np.inf)
        eigenvalue_D = np.linalg.eigvalsh(x_ND.T @ x_ND / len(x_ND))
        return x_ND, eigenvalue_D.sum() ** 2 / np.square(eigenvalue_D).sum()

    for i, j in np.ndindex(n_layers, n_poolings):
        for m in range(y_NM.shape[1]):
            if m == 0 or not share:
                x_ND, d_eff_LP[i, j] = prepare(x_LPND[i, j])
            right, wrong = (x_ND[y_NM[:, m] == k] for k in (1, 0))
            gap = np.square(right.mean(axis=0) - wrong.mean(axis=0)).sum()
            j_LPM[i, j, m] = gap / (right.var(axis=0).sum() + wrong.var(axis=0).sum())
    return j_LPM, d_eff_LP
