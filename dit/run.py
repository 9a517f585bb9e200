"""One run from its configuration to its rows: train, checkpoint, sample, score, and take up again what was interrupted.

At every stop (an evaluation's step, a checkpoint's, the last) the state is saved before anything is scored, so a kill at any point
costs at most the steps since the last stop, and what is done again gives the same bits.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from dit import store
from dit.checkpoint import Checkpoints
from dit.config import Evaluation, RunArguments, RunConfig
from dit.data import Dataset, ImageDataset, load_images
from dit.environment import environment
from dit.errors import UserError
from dit.images import to_uint8
from dit.lease import Lease, LeaseLost, Observer, Stopped, claim, run_files
from dit.mirror import Mirror
from dit.rows import score_row
from dit.sampling import Sampler
from dit.scoring import Scorer, protocol_hash, scorer
from dit.store import MetricsWriter, RunStore
from dit.train import NonFiniteLoss, Program, TrainState, build, train

KEPT_SAMPLES = 16
"""Images kept of each evaluation, for the figures."""

Report = Callable[[dict[str, Any]], None]


def execute(
    folder: Path, study: str, run: RunConfig, arguments: RunArguments, report: Report, lease: Lease | None = None
) -> str:
    """Bring one run of a study to its end and return its state: `done`, `failed`, or `retryable` where it was stopped on request.

    A failure is recorded as a status with its reason, never raised; `report` is told of steps, scores and warnings as they come.
    The run is written under `lease`, claimed here if none is given; its number is the attempt's.

    Raises:
        Busy: if another process holds the run.
        LeaseLost: if another process has taken the run over; nothing was written after that.
    """
    place = RunStore(folder, run)
    if lease is None:
        lease = claim(run_files(place.path), run.run, Observer(), after=place.status()["attempt"])
    record = RunStore(folder, run, lease.check)
    with lease:
        attempt = lease.token
        progress = {
            **{key: value for key, value in record.status().items() if key in ("step", "loss")},
            "attempt": attempt,
        }
        try:
            record.create()
            store.write_json(record.path / f"environment-{attempt:04d}.json", environment(), lease.check)
            record.set_status(store.RUNNING, **progress)
            execution = _Execution(record, study, arguments, report, progress, lease)
            with contextlib.closing(execution.mirror):
                execution.finish()
        except LeaseLost:
            raise
        except Stopped:
            record.set_status(store.RETRYABLE, **progress, reason=lease.stop)
            lease.end(lease.stop)
            return store.RETRYABLE
        except Exception as error:  # whatever stops this cell, the others go on
            reason = str(error) if isinstance(error, UserError | NonFiniteLoss) else f"{type(error).__name__}: {error}"
            if isinstance(error, NonFiniteLoss):
                progress["step"] = error.step
            reason = " ".join(reason.split())
            record.set_status(store.FAILED, **progress, reason=reason)
            lease.end(store.FAILED)
            report({"event": "failed", "reason": reason})
            return store.FAILED
        record.set_status(store.DONE, **progress)
        lease.end(store.DONE)
        return store.DONE


class _Execution:
    """The parts of one attempt, made once and used at every stop."""

    def __init__(
        self,
        record: RunStore,
        study: str,
        arguments: RunArguments,
        report: Report,
        progress: dict[str, Any],
        lease: Lease,
    ):
        self.record, self.run, self.study, self.lease = record, record.run, study, lease
        self.arguments, self.report, self.progress = arguments, report, progress
        self.program: Program = build(self.run)
        self.checkpoints = Checkpoints(record.path / "checkpoints", self.run.hash, lease.check)
        self.averages = Checkpoints(record.path / "ema", self.run.hash, lease.check)
        self.sampler = Sampler(self.program.model, self.run.model, self.run.diffusion, arguments.sample_batch_size)
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
        with contextlib.closing(MetricsWriter(self.record.path, self.lease.token, self.lease.check)) as metrics:
            for stop in self._stops():
                state = train(
                    self.run,
                    self.program,
                    state,
                    self.dataset,
                    stop,
                    self.arguments.log_every,
                    lambda row: self._log(metrics, row),
                )
                metrics.sync()
                self._save(stop, state)
                self._evaluate_now(state)
                self.checkpoints.prune(self.arguments.keep_checkpoints)

    def _restore(self) -> TrainState:
        abstract = jax.eval_shape(self.program.init)
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
        if self.lease.stop:
            raise Stopped(self.lease.stop)

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
        beside = kept.with_name(f".{kept.name}.{self.lease.token}")
        with open(beside, "wb") as file:
            np.savez(file, images=images[:KEPT_SAMPLES], labels=labels[:KEPT_SAMPLES])
        self.lease.check()
        os.replace(beside, kept)
        value = {"schema_version": store.SCHEMA_VERSION, "row": row, "protocol": protocol, "floor": judge.floor}
        store.write_json(self.record.evaluation_path(evaluation), value, self.lease.check)
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
        self.lease.note(**{name: row[name] for name in ("step", "loss", "images_per_s")})
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

            return open_training_data(self.run, self.arguments, self.record.path)
        return ImageDataset(*load_images(self.run.data.name), self.run.batch_size, self.run.seed)
