"""What the sweep is measured against: cells in scikit-learn, and the published search over them."""

import time
from collections.abc import Callable, Sequence

import numpy as np

import routerjax as rj
from benchmarks.suites.probes import read


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

    x_LPND = read(store, data)
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
                # The fastest of its solvers here: 5 to 9 times as fast as "full", and as exact.
                pca = PCA(n_components, svd_solver="covariance_eigh")
                pca.fit(scaler.transform(x_ND[fit]))
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
