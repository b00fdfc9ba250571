"""What the probes are measured against: loops in NumPy float64."""

import numpy as np


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
