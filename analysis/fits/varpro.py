"""Starting points by variable projection: on a grid of exponents the best non-negative amplitudes follow in closed form.

For given exponents an additive form is linear in (E, A_j), so relative squared residuals are minimised by non-negative least squares. With
at most four columns, every subset of them is solved at every grid point at once (normal equations, batched) and the best feasible kept.
Golub & Pereyra 1973; for scaling laws Czech et al. arXiv:2603.22339.
"""

from __future__ import annotations

import itertools

import numpy as np

from analysis.fits.laws import Form

GRID = {1: 60, 2: 24, 3: 12}
"""Exponents tried per term, by the number of terms, evenly spaced in their logarithm."""
SMALLEST, LARGEST = 0.01, 3.0
STARTS = 12
_RIDGE = 1e-13


def nonnegative(columns: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative least squares for many matrices: columns (g, n, k), target (n,) -> amplitudes (g, k), squared residuals (g,).

    Exact by enumeration of the 2^k - 1 subsets of columns; meant for k <= 4.
    """
    number, _, k = columns.shape
    gram = np.einsum("gnk,gnl->gkl", columns, columns)
    right = columns.transpose(0, 2, 1) @ target
    best = np.zeros((number, k))
    least = np.full(number, float(target @ target))
    for count in range(1, k + 1):
        for subset in itertools.combinations(range(k), count):
            part = gram[:, subset][:, :, subset]
            scale = np.sqrt(np.einsum("gkk->gk", part))
            part = part / (scale[:, :, None] * scale[:, None, :]) + _RIDGE * np.eye(count)
            solved = np.linalg.solve(part, (right[:, subset] / scale)[..., None])[..., 0] / scale
            amplitudes = np.zeros((number, k))
            amplitudes[:, subset] = solved
            residual = target - np.einsum("gnk,gk->gn", columns, amplitudes)
            squares = (residual**2).sum(-1)
            better = (solved >= 0).all(-1) & (squares < least)
            best[better], least[better] = amplitudes[better], squares[better]
    return best, least


def starts(form: Form, u: np.ndarray, log_score: np.ndarray, weights: np.ndarray, groups: int = 1) -> np.ndarray:
    """The best `STARTS` starting vectors (s, p) of a form; a log-linear form has one, its least squares solution."""
    if not form.additive:
        root = np.sqrt(weights)
        return np.linalg.lstsq(form.design(u) * root[:, None], log_score * root, rcond=None)[0][None]
    terms = len(form.variables)
    one = np.geomspace(SMALLEST, LARGEST, GRID[terms])
    exponents = np.stack(np.meshgrid(*[one] * terms, indexing="ij"), axis=-1).reshape(-1, terms)
    relative = np.sqrt(weights) * np.exp(-log_score)
    powers = np.exp(-exponents[:, None, :] * u) * relative[:, None]
    if form.irreducible:
        powers = np.concatenate([np.broadcast_to(relative[:, None], (*powers.shape[:2], 1)), powers], axis=-1)
    amplitudes, squares = nonnegative(powers, np.sqrt(weights))
    order = np.argsort(squares, kind="stable")[:STARTS]
    return np.concatenate([amplitudes[order], exponents[order], np.zeros((len(order), groups - 1))], axis=1)
