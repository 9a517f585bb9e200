"""Training images held in memory, and batches that are a function of (seed, step) alone. A data set is any object with `batch(step)`."""

from __future__ import annotations

import functools
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from dit.design.data import Data, loaded
from dit.design.parts import find, named

Batch = tuple[Float32[np.ndarray, "B I I C"], Int32[np.ndarray, " B"]]


@runtime_checkable
class Dataset(Protocol):
    """Where training batches come from."""

    def batch(self, step: int) -> Batch:
        """Images in [-1, 1] (or scaled latents) and labels of one step, this process's rows of the global batch."""
        ...


def load_images(name: str, source: str | None = None) -> tuple[UInt8[np.ndarray, "N I I C"], Int32[np.ndarray, " N"]]:
    """All images (uint8 NHWC) and labels of a data set of pixels; without a `source`, of the one of that name made last.

    Raises:
        UserError: for an unknown name, a data set of latents, or what its record's loader gives that is not what the record says.
    """
    return _loaded(find(Data, name) if source is None else named(Data, name, source))


@functools.cache
def _loaded(data: Data) -> tuple[np.ndarray, np.ndarray]:
    return loaded(data)


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
