"""One run from its configuration to its rows: train, checkpoint, sample, score, and take up again what was interrupted.

At every stop (an evaluation's step, a checkpoint's, the last) the state is saved before anything is scored, so a kill at any point
costs at most the steps since the last stop, and what is done again gives the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from dit import store
from dit.checkpoint import Checkpoints
from dit.compute import Compute
from dit.config import Evaluation, RunArguments, RunConfig
from dit.data import Dataset, ImageDataset, load_images
from dit.environment import environment
from dit.errors import UserError
from dit.images import to_uint8
from dit.loop import Diverged, steps_per_dispatch, train
from dit.mesh import make_mesh
from dit.mirror import Mirror
from dit.model import applied
from dit.rows import score_row
from dit.sampling import Sampler
from dit.scoring import Scorer, protocol_hash, scorer
from dit.store import MetricsWriter, RunStore
from dit.throughput import Meter
from dit.train import Program, TrainState, build

KEPT_SAMPLES = 16
"""Images kept of each evaluation, for the figures."""

Report = Callable[[dict[str, Any]], None]


def execute(folder: Path, study: str, run: RunConfig, arguments: RunArguments, report: Report) -> str:
    """Bring one run of a study to its end and return its final state, `done` or `failed`.

    A failure is recorded as a status with its reason, never raised; `report` is told of steps, scores and warnings as they come.
    """
    record = RunStore(folder, run)
    with store.exclusive(record.path / ".lock"):
        attempt = record.status()["attempt"] + 1
        progress = {
            **{key: value for key, value in record.status().items() if key in ("step", "loss")},
            "attempt": attempt,
        }
        try:
            record.create()
            store.write_json(record.path / f"environment-{attempt:04d}.json", environment())
            record.set_status(store.RUNNING, **progress)
            execution = _Execution(record, study, arguments, report, progress)
            with contextlib.closing(execution.mirror):
                execution.finish()
        except Exception as error:  # whatever stops this cell, the others go on
            reason = str(error) if isinstance(error, UserError | Diverged) else f"{type(error).__name__}: {error}"
            if isinstance(error, Diverged):
                progress["step"] = error.step
            reason = " ".join(reason.split())
            record.set_status(store.FAILED, **progress, reason=reason)
            report({"event": "failed", "reason": reason})
            return store.FAILED
        record.set_status(store.DONE, **progress)
        return store.DONE


class _Execution:
    """The parts of one attempt, made once and used at every stop."""

    def __init__(self, record: RunStore, study: str, arguments: RunArguments, report: Report, progress: dict[str, Any]):
        self.record, self.run, self.study = record, record.run, study
        self.arguments, self.report, self.progress = arguments, report, progress
        self.program: Program = build(self.run, make_mesh(arguments.mesh), arguments)
        self.meter = Meter(self.run, self.program.devices)
        self.checkpoints = Checkpoints(record.path / "checkpoints", self.run.hash)
        self.averages = Checkpoints(record.path / "ema", self.run.hash)
        float32 = applied(self.run.model, Compute(), self.program.devices[0].platform)
        self.sampler = Sampler(float32, self.run.model, self.run.diffusion, arguments.sample_batch_size)
        self.judges = self._judges()
        self.dataset = self._dataset()
        self.mirror = Mirror(arguments.wandb, self.run, study, record.path, self._warn)

    def finish(self) -> None:
        """Do what is missing: the steps, then at each stop the evaluations."""
        state = self._restore()
        for evaluation in self.record.missing_evaluations():
            if evaluation.step < self.progress["step"]:
                self._evaluate(evaluation, self._kept_average(evaluation, state))
        self._evaluate_now(state)
        self.checkpoints.prune(self.arguments.keep_checkpoints)
        length = steps_per_dispatch(self.run, self.arguments, self.program.devices[0].platform)
        with contextlib.closing(MetricsWriter(self.record.path, self.progress["attempt"])) as metrics:
            for stop in self._stops():
                state = train(
                    self.program,
                    state,
                    self.dataset,
                    stop,
                    self.arguments.log_every,
                    lambda row: self._log(metrics, row),
                    length=length,
                    meter=self.meter,
                )
                metrics.sync()
                self._save(stop, state)
                self._evaluate_now(state)
                self.checkpoints.prune(self.arguments.keep_checkpoints)

    def _restore(self) -> TrainState:
        abstract = self.program.abstract()
        restored = self.checkpoints.restore_latest(abstract, self._warn)
        if restored is None:
            self.progress["step"] = 0
            return self.program.init()
        self.progress["step"], state = restored
        return state

    def _stops(self) -> list[int]:
        every = self.arguments.checkpoint_every
        stops = {e.step for e in self.run.evaluations} | set(range(every, self.run.steps, every)) | {self.run.steps}
        return sorted(stop for stop in stops if stop > self.progress["step"])

    def _save(self, step: int, state: TrainState) -> None:
        if any(e.step == step for e in self.run.evaluations):
            self.averages.save(step, state.ema)
        self.checkpoints.save(step, state)
        self.progress["step"] = step
        self.record.set_status(store.RUNNING, **self.progress)

    def _evaluate_now(self, state: TrainState) -> None:
        for evaluation in self.record.missing_evaluations():
            if evaluation.step == self.progress["step"]:
                self._evaluate(evaluation, state.ema if evaluation.ema else state.params)

    def _kept_average(self, evaluation: Evaluation, state: TrainState) -> PyTree:
        if not evaluation.ema or evaluation.step not in self.averages.steps():
            raise UserError(
                f"no {'averaged' if evaluation.ema else 'raw'} weights are kept of step {evaluation.step}, which training has passed: "
                "declare the evaluation before training, or move the run's folder away to train it again"
            )
        return self.averages.restore(evaluation.step, state.ema)

    def _evaluate(self, evaluation: Evaluation, params: PyTree) -> None:
        self.report({"event": "score", "step": evaluation.step})
        judge = self.judges.get(evaluation) or scorer(evaluation.features)
        protocol = judge.protocol(self.run, evaluation)
        score, images, labels = self._score(judge, evaluation, params)
        row = score_row(self.run, self.study, evaluation, score, protocol_hash(protocol))
        kept = self.record.samples_path(evaluation)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with open(kept, "wb") as file:
            np.savez(file, images=images[:KEPT_SAMPLES], labels=labels[:KEPT_SAMPLES])
        value = {"schema_version": store.SCHEMA_VERSION, "row": row, "protocol": protocol, "floor": judge.floor}
        store.write_json(self.record.evaluation_path(evaluation), value)
        self.mirror.log({key: row[key] for key in ("step", "train_gflops", evaluation.metric)})
        self.report({"event": "scored", "step": evaluation.step, evaluation.metric: row[evaluation.metric]})

    def _score(self, judge: Scorer, evaluation: Evaluation, params: PyTree) -> tuple[float, np.ndarray, np.ndarray]:
        """The score, and the first images and labels at least. Decoded samples are too many to hold."""
        batches = self.sampler.draw(params, evaluation, 0, evaluation.num_samples)
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

    def _log(self, metrics: MetricsWriter, row: dict[str, Any]) -> None:
        metrics.write(row)
        self.mirror.log(row)
        self.progress["loss"] = row["loss"]
        self.report({"event": "step", **row})

    def _warn(self, message: str) -> None:
        self.report({"event": "warning", "message": message})

    def _judges(self) -> dict[Evaluation, Scorer]:
        """Scorers that need files of the user's, opened before training: a missing one should not be noticed days later."""
        if not self.run.data.is_latent:
            return {}
        from dit.run_inputs import open_scorer

        return {e: open_scorer(self.run, e, self.arguments) for e in self.record.missing_evaluations()}

    def _dataset(self) -> Dataset:
        if self.run.data.is_latent:
            from dit.run_inputs import open_training_data

            return open_training_data(self.run, self.arguments, self.record.path, self.program.rows)
        images = load_images(self.run.data.name)
        return ImageDataset(*images, self.run.batch_size, self.run.seed, self.program.rows)
