"""Inception Score, as the ADM suite takes it.

    IS = mean over splits of exp( mean_x KL(p(y|x) || p(y)) )          Salimans et al. 2016 (arXiv 1606.03498)

Splits are consecutive runs of 5,000 images in the order given, so 10 of them at the usual 50,000 samples (the last may be short), and
p(y|x) is the softmax over 1008 logits with the classifier's bias left out: ADM multiplies pool_3 by the weights alone. Higher is
better; the value grows with the size of the split, so other split sizes do not compare.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax

from dit.errors import UserError

SPLIT = 5000
"""Images to a split, in ADM and here."""


class InceptionScore:
    """Streaming sums of each split; parts of the same images may be taken on several hosts and merged.

    Args:
        classes: logits per image.
        split: images to a split.
    """

    def __init__(self, classes: int, split: int = SPLIT):
        self.split = split
        self._count = np.zeros(0)
        self._entropy = np.zeros(0)  # sum over images of sum_y p log p
        self._mass = np.zeros((0, classes))  # sum over images of p

    def update(self, logits: Float[np.ndarray, "B K"], start: int) -> InceptionScore:
        """Add images `start`, `start` + 1, ... of the whole set; returns itself."""
        log_p = log_softmax(logits.astype(np.float64), axis=1)
        p = np.exp(log_p)
        where = (start + np.arange(len(logits))) // self.split
        self._grow(int(where[-1]) + 1)
        for index in np.unique(where):
            rows = where == index
            self._count[index] += rows.sum()
            self._entropy[index] += (p[rows] * log_p[rows]).sum()
            self._mass[index] += p[rows].sum(axis=0)
        return self

    def merge(self, other: InceptionScore) -> InceptionScore:
        """Add the images that `other` has seen; returns itself."""
        self._grow(len(other._count))
        self._count[: len(other._count)] += other._count
        self._entropy[: len(other._count)] += other._entropy
        self._mass[: len(other._count)] += other._mass
        return self

    def _grow(self, splits: int) -> None:
        more = max(0, splits - len(self._count))
        self._count, self._entropy = (np.pad(array, (0, more)) for array in (self._count, self._entropy))
        self._mass = np.pad(self._mass, ((0, more), (0, 0)))

    def scores(self) -> Float[np.ndarray, "splits"]:
        """The score of each split.

        Raises:
            UserError: if no image was added.
        """
        used = self._count > 0
        if not used.any():
            raise UserError("no images to take an Inception Score of: expected at least 1")
        marginal = self._mass[used] / self._count[used, None]
        # a class of probability 0 adds nothing to the entropy
        kl = self._entropy[used] / self._count[used] - (marginal * np.log(np.where(marginal > 0, marginal, 1))).sum(
            axis=1
        )
        return np.exp(kl)

    def state(self, prefix: str = "") -> dict[str, Any]:
        """Arrays that restore these sums exactly, for a checkpoint."""
        arrays = {"split": np.array(self.split), "count": self._count, "entropy": self._entropy, "mass": self._mass}
        return {prefix + key: value for key, value in arrays.items()}

    @classmethod
    def from_state(cls, arrays: Any, prefix: str = "") -> InceptionScore:
        """Sums from what `state` returned."""
        sums = cls(arrays[prefix + "mass"].shape[1], int(arrays[prefix + "split"]))
        sums._count, sums._entropy, sums._mass = (
            np.array(arrays[prefix + key]) for key in ("count", "entropy", "mass")
        )
        return sums


def inception_score(logits: Float[np.ndarray, "N K"], split: int = SPLIT) -> float:
    """The score of images whose logits are all at hand."""
    return float(InceptionScore(logits.shape[1], split).update(logits, 0).scores().mean())
