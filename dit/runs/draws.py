"""Drawing and scoring the samples of a run's evaluation, split over the processes of the run.

A round of batches is drawn at once, one by each process on its own devices, and every process then gets all of them, in the order of a
lone process: scores and bits are the same, however many share the work. Sampling is what costs; features are taken everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from dit.design.config import Evaluation
from dit.hosts.processes import Processes
from dit.model.mesh import here
from dit.runs.journal import KEPT_SAMPLES
from dit.score.evaluation import take_in
from dit.score.kept_samples import KeptSamples
from dit.score.sampling import Drawn, Sampler, Weak
from dit.score.scoring import Scored, Scorer
from dit.store.lease import Stopped


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
        metrics: tuple[str, ...] = (),
        weak: Weak | None = None,
    ) -> Scored:
        """Scores of all samples in one pass; begun with what is `kept` of an earlier attempt, if anything is.

        Args:
            metrics: those to take, if not all of the evaluation's.
            weak: what autoguidance steers away from.

        Raises:
            Stopped: by `go_on`, with the finished batches kept.
        """
        metrics = metrics or evaluation.metrics
        params, statistics = here(params), judge.statistics(metrics, evaluation.num_samples)
        first: list[tuple[np.ndarray, np.ndarray]] = []
        if kept is not None and (arrays := kept.load(params)) is not None:
            statistics.restore(arrays)
            first.append((arrays["images"], arrays["labels"]))

        def images() -> Iterator[np.ndarray]:
            for batch in self._batches(params, evaluation, statistics.count, weak):
                found = judge.images(batch.images)
                if sum(len(labels) for _, labels in first) < KEPT_SAMPLES:
                    first.append((found, batch.labels))
                yield found

        def shown() -> dict[str, np.ndarray]:
            return dict(zip(("images", "labels"), map(np.concatenate, zip(*first))))

        def keep() -> None:
            if kept is not None and kept.is_due():
                kept.save(statistics.state() | shown(), params)

        try:
            take_in(statistics, judge.extractor, images(), keep)
        except Stopped:
            if kept is not None and statistics.count:
                kept.save(statistics.state() | shown(), params)
            raise
        return Scored(judge.scores(statistics, metrics), **shown())

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
