"""Kernel Inception Distance (Binkowski et al. 2018, arXiv 1801.01401): squared MMD of pooled features, unbiased whatever the number.

    k(x, y) = (x·y / F + 1)³
    MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j)

As published: the mean over 100 random subsets of 1,000 from each side (fewer where there are fewer). It may come out negative, and it
is not multiplied by a thousand here.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from dit.errors import UserError

SUBSETS = 100
SUBSET_SIZE = 1000
WHOLE = 4096
"""Points up to which the kernel of all of a set is held: 128 MiB."""


def kid(
    references: Float[np.ndarray, "R F"],
    samples: Float[np.ndarray, "N F"],
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> Float[np.ndarray, "subsets"]:
    """The estimate of each subset; their mean is the score. Subsets are drawn without replacement within each."""
    size = min(subset_size, len(references), len(samples))
    if size == len(references) == len(samples):
        subsets = 1  # every draw is the whole of both
    generator = np.random.default_rng(seed)
    draws = ((generator.choice(len(x), size, replace=False) for x in (references, samples)) for _ in range(subsets))
    if size < 2 or max(len(references), len(samples)) > WHOLE:
        return np.array([squared_mmd(references[a], samples[b]) for a, b in draws])
    return _of_whole_kernels(references.astype(np.float64), samples.astype(np.float64), list(draws))


def _of_whole_kernels(x: np.ndarray, y: np.ndarray, draws: list) -> np.ndarray:
    """The same where the kernels of all points fit: each subset's sums are quadratic forms in them, a twentieth of the work."""
    chosen = [np.zeros((len(points), len(draws))) for points in (x, y)]
    for column, pair in enumerate(draws):
        for rows, indices in zip(chosen, pair):
            rows[indices, column] = 1.0
    a, b = chosen
    size = a[:, 0].sum()
    own = 0.0
    for points, rows in ((x, a), (y, b)):
        kernel = _kernel(points, points)
        np.fill_diagonal(kernel, 0.0)
        own += np.einsum("ij,ij->j", rows, kernel @ rows) / (size * (size - 1))
    return own - 2 * np.einsum("ij,ij->j", a, _kernel(x, y) @ b) / size**2


def squared_mmd(x: Float[np.ndarray, "N F"], y: Float[np.ndarray, "M F"]) -> float:
    """Unbiased squared MMD in float64.

    Raises:
        UserError: for fewer than two points on a side.
    """
    if min(len(x), len(y)) < 2:
        raise UserError(f"{min(len(x), len(y))} image(s) for KID: expected at least 2 on each side, give more images")
    x, y = x.astype(np.float64), y.astype(np.float64)
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * float(_kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    linear = x @ y.T
    linear /= x.shape[1]
    linear += 1
    return linear * linear * linear


def _mean_of_pairs(x: np.ndarray) -> float:
    kernel = _kernel(x, x)
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))
