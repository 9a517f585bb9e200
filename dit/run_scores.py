"""Drawing and scoring the samples of a run's evaluation, split over the processes of the run.

A round of batches is drawn at once, one by each process on its own devices, and every process then gets all of them, in the order of a
lone process: scores and bits are the same, however many share the work. Sampling is what costs; features are taken everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from dit.config import Evaluation
from dit.images import to_uint8
from dit.journal import KEPT_SAMPLES
from dit.mesh import here
from dit.processes import Processes
from dit.sampling import Drawn, Sampler
from dit.scoring import Scorer


class Draws:
    """Samples of one run. `go_on` is called before each batch and raises if the run has to stop."""

    def __init__(self, sampler: Sampler, processes: Processes, go_on: Callable[[], None]):
        self._sampler, self._processes, self._go_on = sampler, processes, go_on

    def score(self, judge: Scorer, evaluation: Evaluation, params: PyTree) -> tuple[float, np.ndarray, np.ndarray]:
        """The score, and the first images and labels at least. Decoded samples are too many to hold."""
        batches = self._batches(here(params), evaluation)
        decoder = judge.decoder
        if decoder is None:
            drawn = list(batches)
            images = to_uint8(np.concatenate([batch.images for batch in drawn]))
            return judge.score(images), images, np.concatenate([batch.labels for batch in drawn])
        first: list[tuple[np.ndarray, np.ndarray]] = []

        def decoded() -> Iterator[np.ndarray]:
            for batch in batches:
                images = decoder.images(batch.images)
                if sum(len(kept) for kept, _ in first) < KEPT_SAMPLES:
                    first.append((images, batch.labels))
                yield images

        score = judge.score_batches(decoded())
        return score, np.concatenate([images for images, _ in first]), np.concatenate([labels for _, labels in first])

    def _batches(self, params: PyTree, evaluation: Evaluation) -> Iterator[Drawn]:
        size, total, processes = self._sampler.batch_size, evaluation.num_samples, self._processes
        if processes.count == 1:
            self._go_on()
            for batch in self._sampler.draw(params, evaluation, 0, total):
                yield batch
                self._go_on()
            return
        for first in range(0, total, size * processes.count):
            self._go_on()
            mine = first + processes.index * size  # drawn past the end too, and dropped: all take part in the exchange
            (batch,) = self._sampler.draw(params, evaluation, mine, mine + size)
            round_of = multihost_utils.process_allgather(batch)
            for k in range(min(processes.count, -(-(total - first) // size))):
                count = min(size, total - first - k * size)
                yield Drawn(np.asarray(round_of.images[k][:count]), np.asarray(round_of.labels[k][:count]))
