"""Fréchet distance between Gaussians: FID on pooled features, sFID on spatial ones.

    d² = |m₁ - m₂|² + tr S₁ + tr S₂ - 2 tr (S₁ S₂)^½          Dowson and Landau 1982; Heusel et al. 2017 (arXiv 1706.08500)

With factors S = L Lᵀ the last trace is the sum of the singular values of L₁ᵀ L₂: symmetric throughout, and defined whatever the
ranks, so also for fewer samples than dimensions. No square root of a matrix, no jitter on the diagonal, no complex numbers.
Published values take 50,000 samples against statistics of the whole data set; the estimate falls with the number of samples, so
values of different numbers do not compare.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float

from dit.errors import UserError


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean (F,) and covariance (F, F) in float64, and of how many samples they are (None where a file does not say)."""

    mean: Float[np.ndarray, "..."]
    covariance: Float[np.ndarray, "..."]
    count: int | None = None

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.covariance.shape != (len(self.mean), len(self.mean)):
            raise UserError(
                f"statistics have mean {self.mean.shape} and covariance {self.covariance.shape}: "
                "expected (F,) and (F, F), make the file again with `dit reference`"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise UserError(
                "statistics hold values that are not finite: expected finite mean and covariance, make the file again"
            )

    @functools.cached_property
    def factor(self) -> Float[np.ndarray, "F rank"]:
        """L with L Lᵀ = covariance and as many columns as its numerical rank: Cholesky with pivots, computed once."""
        half, pivots, rank, _ = scipy.linalg.get_lapack_funcs(("pstrf",), (self.covariance,))[0](
            self.covariance, lower=1
        )
        factor = np.empty_like(half[:, :rank])
        factor[pivots - 1] = np.tril(half)[:, :rank]
        return factor


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance between two Gaussians, in float64; symmetric in them and never negative.

    Raises:
        UserError: if their dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"statistics of {len(a.mean)} and {len(b.mean)} dimensions: expected the same extractor for both, make the reference again"
        )
    shift = a.mean - b.mean
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * _trace_of_root(a.factor, b.factor)
    return max(float(shift @ shift + spread), 0.0)


def _trace_of_root(a: np.ndarray, b: np.ndarray) -> float:
    """tr (S₁ S₂)^½, the nuclear norm of L₁ᵀ L₂."""
    if not (a.shape[1] and b.shape[1]):
        return 0.0
    product = a.T @ b if a.shape[1] <= b.shape[1] else b.T @ a
    # Squares of the singular values, ten times as fast as these. The Gram matrix is of the side of lower rank: of the other, rank that
    # is missing would be many zeros rounded to 1e-16 of the largest, whose roots add up.
    squares = scipy.linalg.eigvalsh(product @ product.T, overwrite_a=True, check_finite=False, driver="evr")
    return float(np.sqrt(np.maximum(squares, 0)).sum())
