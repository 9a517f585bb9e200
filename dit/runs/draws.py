"""Drawing and scoring the samples of a run's evaluation, split over the processes of the run.

A round of batches is drawn at once, one by each process on its own devices, and every process then gets all of them, in the order of a
lone process: scores and bits are the same, however many share the work. Sampling is what costs; features are taken everywhere. What is
known of the finished batches is kept in the run's folder, so that a killed evaluation goes on with the next one (`dit.runs.kept_samples`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from dit.data.images import to_uint8
from dit.design.config import Evaluation
from dit.hosts.processes import Processes
from dit.model.mesh import here
from dit.runs.journal import KEPT_SAMPLES
from dit.runs.kept_samples import KeptSamples
from dit.score.metrics.moments import Moments
from dit.score.sampling import Drawn, Sampler, Weak
from dit.score.scoring import Scorer
from dit.store.lease import Stopped


class Seen:
    """What a score needs to know of the first `count` samples: all images, or of decoded ones, too many to hold, moments of features.

    `images` and `labels` are of all samples, or of the first at least.
    """

    def __init__(self, judge: Scorer):
        self.judge, self.count = judge, 0
        self._images: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._moments: Moments | None = None

    @property
    def images(self) -> np.ndarray:
        """NHWC, uint8."""
        return np.concatenate(self._images)

    @property
    def labels(self) -> np.ndarray:
        """Their labels."""
        return np.concatenate(self._labels)

    def add(self, batch: Drawn) -> None:
        """Take in the next samples.

        Raises:
            UserError: if a value is not a number.
        """
        decoder = self.judge.decoder
        images = to_uint8(batch.images) if decoder is None else decoder.images(batch.images)
        if decoder is not None:
            pooled = self.judge.extractor.extract(images).pooled
            self._moments = (self._moments or Moments(pooled.shape[1])).update(pooled)
        if decoder is None or self.count < KEPT_SAMPLES:
            self._images.append(images)
            self._labels.append(batch.labels)
        self.count += len(batch.labels)

    def score(self) -> float:
        """Of everything seen."""
        return self.judge.score(self.images) if self._moments is None else self.judge.distance(self._moments)

    def state(self) -> dict[str, Any]:
        """Arrays that restore all of it: what follows is the same bit for bit."""
        moments = self._moments.state("pooled_") if self._moments is not None else {}
        return {"count": np.array(self.count), "images": self.images, "labels": self.labels, **moments}

    def restore(self, arrays: Any) -> None:
        """Take up what `state` returned."""
        self.count, self._images, self._labels = int(arrays["count"]), [arrays["images"]], [arrays["labels"]]
        self._moments = Moments.from_state(arrays, "pooled_") if "pooled_count" in arrays else None


class Draws:
    """Samples of one run. `go_on` is called before each batch and raises if the run has to stop."""

    def __init__(self, sampler: Sampler, processes: Processes, go_on: Callable[[], None]):
        self._sampler, self._processes, self._go_on = sampler, processes, go_on
        self.batch_size = sampler.batch_size

    def score(
        self,
        judge: Scorer,
        evaluation: Evaluation,
        params: PyTree,
        kept: KeptSamples | None = None,
        weak: Weak | None = None,
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """The score, and the first images and labels at least; begun with what is `kept` of an earlier attempt, if anything is.

        Raises:
            Stopped: by `go_on`, with the finished batches kept.
        """
        params, seen = here(params), Seen(judge)
        if kept is not None and (arrays := kept.load(params)) is not None:
            seen.restore(arrays)
        try:
            for batch in self._batches(params, evaluation, seen.count, weak):
                seen.add(batch)
                if kept is not None and kept.is_due():
                    kept.save(params, seen.state())
        except Stopped:
            if kept is not None and seen.count:
                kept.save(params, seen.state())
            raise
        return seen.score(), seen.images, seen.labels

    def _batches(self, params: PyTree, evaluation: Evaluation, start: int, weak: Weak | None) -> Iterator[Drawn]:
        """Samples from `start` on, which is where a batch begins, or the end."""
        size, total, processes = self.batch_size, evaluation.num_samples, self._processes
        if processes.count == 1:
            self._go_on()
            for batch in self._sampler.draw(params, evaluation, start, total, weak=weak):
                yield batch
                self._go_on()
            return
        for first in range(start, total, size * processes.count):
            self._go_on()
            mine = first + processes.index * size  # drawn past the end too, and dropped: all take part in the exchange
            (batch,) = self._sampler.draw(params, evaluation, mine, mine + size, weak=weak)
            round_of = multihost_utils.process_allgather(batch)
            for k in range(min(processes.count, -(-(total - first) // size))):
                count = min(size, total - first - k * size)
                yield Drawn(np.asarray(round_of.images[k][:count]), np.asarray(round_of.labels[k][:count]))
