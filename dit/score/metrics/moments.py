"""Streaming mean and covariance of features, in float64, with memory that does not depend on how many there are.

Rows are shifted by the mean of the first block, so nothing cancels, and the scatter grows in place by symmetric rank-k updates (half
the work of a product). Moments of disjoint parts merge, so hosts and resumed evaluations add up. The covariance is unbiased
(`np.cov`, divisor n - 1), as in the ADM suite and pytorch-fid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import get_blas_funcs

from dit.errors import UserError
from dit.score.metrics.frechet import Gaussian

_rank_update = get_blas_funcs(("syrk",), dtype=np.float64)[0]

BLOCK = 2048
"""Rows held back until a rank-k update is worth a pass over the scatter."""


class Moments:
    """Count, mean and scatter of the rows seen so far.

    Args:
        dimensions: features per row.
        name: what the rows are, for error messages.
    """

    def __init__(self, dimensions: int, name: str = "features"):
        self.dimensions, self.name = dimensions, name
        self.count = 0
        self._shift = np.zeros(dimensions)
        self._sum = np.zeros(dimensions)  # of shifted rows, as is the scatter, whose upper triangle alone is kept
        self._scatter = np.zeros((dimensions, dimensions), order="F")
        self._held: list[np.ndarray] = []

    def update(self, features: Float[np.ndarray, "B F"]) -> Moments:
        """Add rows; returns itself.

        Raises:
            UserError: if a value is not finite, or the width is another than `dimensions`.
        """
        if features.shape[1] != self.dimensions:
            raise UserError(
                f"{self.name} have {features.shape[1]} dimensions, expected {self.dimensions}: use one extractor throughout"
            )
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            row = self.count + int(np.argmin(finite))
            raise UserError(
                f"{self.name} of image {row} are not finite: expected finite values, check the images and the weights"
            )
        while len(features):  # blocks are of one size, however the rows come
            room = BLOCK - sum(map(len, self._held))
            rows, features = np.array(features[:room], np.float64), features[room:]
            self._held.append(rows)
            self.count += len(rows)
            if len(rows) == room:
                self._settle()
        return self

    def merge(self, other: Moments) -> Moments:
        """Add the rows that `other` has seen; returns itself."""
        if other.dimensions != self.dimensions:
            raise UserError(
                f"{other.name} have {other.dimensions} dimensions, expected {self.dimensions}: use one extractor throughout"
            )
        other._settle()
        self._settle()
        if self.count == 0:
            self._shift = other._shift.copy()
        move = other._shift - self._shift  # sum of (x - s)(x - s)^T about this shift, from the sum about the other's
        cross = np.outer(other._sum, move)
        self._scatter += other._scatter
        self._scatter += np.triu(cross + cross.T + other.count * np.outer(move, move))
        self._sum += other._sum + other.count * move
        self.count += other.count
        return self

    def _settle(self) -> None:
        if not self._held:
            return
        rows = np.concatenate(self._held)
        if self.count == len(rows):
            self._shift = rows.mean(axis=0)
        self._held.clear()
        rows -= self._shift
        self._sum += rows.sum(axis=0)
        # rows.T is Fortran-ordered without a copy, so the scatter is updated in place
        self._scatter = _rank_update(1.0, rows.T, beta=1.0, c=self._scatter, overwrite_c=True)

    def gaussian(self) -> Gaussian:
        """Mean and covariance of everything seen.

        Raises:
            UserError: for fewer than two rows, of which no covariance exists.
        """
        self._settle()
        if self.count < 2:
            raise UserError(f"{self.count} image(s) have no covariance: expected at least 2 images, give more of them")
        upper = self._scatter - np.outer(self._sum, self._sum / self.count)
        covariance = np.triu(upper) + np.triu(upper, 1).T
        covariance /= self.count - 1
        return Gaussian(self._shift + self._sum / self.count, covariance, self.count)

    def state(self, prefix: str = "") -> dict[str, Any]:
        """Arrays that restore these moments exactly, for a checkpoint: what follows is the same bit for bit, saved or not."""
        held = np.concatenate([np.zeros((0, self.dimensions)), *self._held])
        arrays = {
            "count": np.array(self.count),
            "shift": self._shift,
            "sum": self._sum,
            "scatter": self._scatter,
            "held": held,
        }
        return {prefix + key: value for key, value in arrays.items()}

    @classmethod
    def from_state(cls, arrays: Any, prefix: str = "", name: str = "features") -> Moments:
        """Moments from what `state` returned, in a mapping such as an open `.npz`."""
        moments = cls(len(arrays[prefix + "shift"]), name)
        moments.count = int(arrays[prefix + "count"])
        moments._shift = np.array(arrays[prefix + "shift"])
        moments._sum = np.array(arrays[prefix + "sum"])
        moments._scatter = np.array(arrays[prefix + "scatter"], order="F")
        moments._held = [rows] if len(rows := arrays[prefix + "held"]) else []
        return moments
