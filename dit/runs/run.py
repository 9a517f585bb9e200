"""One run from its configuration to its rows: train, checkpoint, sample, score, and take up again what was interrupted.

At every stop (an evaluation's step, a checkpoint's, the last) the state is saved before anything is scored, so a kill at any point
costs at most the steps since the last stop, and what is done again gives the same bits. All processes of a run go through this together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import PyTree

from dit.data.batches import Dataset, ImageDataset, load_images
from dit.design.config import Evaluation, RunArguments, RunConfig
from dit.design.features import check_scored
from dit.design.metrics import INCEPTION
from dit.errors import UserError
from dit.hosts.preemption import Preemption
from dit.hosts.processes import Absent, Processes, is_severed
from dit.hosts.watchdog import HANG_S, Watchdog
from dit.model.compute import compute_on, require_precision
from dit.model.mesh import make_mesh
from dit.model.transformer import applied
from dit.runs.draws import Draws
from dit.runs.journal import Journal, Report
from dit.score.kept_samples import KeptSamples
from dit.score.sampling import Sampler, Weak
from dit.score.scoring import open_scorer
from dit.store import study as store
from dit.store.lease import PREEMPTED, Busy, Lease, LeaseLost, Observer, Stopped, claim, run_files
from dit.store.manifest import Corrupt
from dit.train.checkpoint import CheckpointWriter
from dit.train.loop import Diverged, steps_per_dispatch, train
from dit.train.restore import open_checkpoint
from dit.train.step import Metrics, Program, TrainState, build
from dit.train.throughput import Meter

T = TypeVar("T")

MOST_LETTERS = 300
"""Of a failure's reason: some libraries print a whole state."""


def execute(
    folder: Path, study: str, run: RunConfig, arguments: RunArguments, report: Report, lease: Lease | None = None
) -> str:
    """Bring one run of a study to its end and return its state: `done`, `failed`, or `retryable` where it was stopped on request.

    A failure is recorded as a status with its reason, never raised; `report` is told of steps, scores and warnings as they come.
    The run is written under `lease`, claimed here if none is given; its number is the attempt's. Of several processes all call this,
    with a lease in process 0 at most; one of them that fails alone ends, since the others wait for it, and the run resumes.

    Raises:
        Busy: if another process holds the run.
        LeaseLost: if another process has taken the run over; nothing was written after that.
    """
    processes, listens = Processes(), lease is None
    lease = _claim(folder, run, processes, lease)
    watchdog = Watchdog(HANG_S if processes.count > 1 else 0.0)
    with lease or contextlib.nullcontext(), contextlib.closing(watchdog):
        journal = Journal(folder, study, run, arguments, report, lease, processes)
        with Preemption(processes, lease, listens) as preemption, contextlib.closing(journal):
            try:
                execution = _opened(journal, run, arguments, processes, preemption, watchdog)
                with execution:
                    execution.finish()
            except (LeaseLost, Absent):
                raise
            except Stopped:
                journal.end(
                    store.RETRYABLE, lease.stop if lease else PREEMPTED, reason=lease.stop if lease else PREEMPTED
                )
                return store.RETRYABLE
            except Exception as error:  # whatever stops this cell, the others go on
                if processes.count > 1 and is_severed(error):
                    raise  # another process is lost and this attempt with it; the run resumes from its last checkpoint
                if isinstance(error, Diverged):
                    journal.progress["step"] = error.step
                reason = reason_of(error)
                journal.end(store.FAILED, reason=reason)
                journal.event("failed", reason=reason)
                if processes.count > 1 and not isinstance(error, Diverged | _Refused):
                    raise
                return store.FAILED
            journal.end(store.DONE)
            return store.DONE


def reason_of(error: Exception) -> str:
    """Why a run failed, in a line; that memory ran out is said first, on the host or on a device."""
    text = str(error) if isinstance(error, UserError | Diverged) else f"{type(error).__name__}: {error}"
    exhausted = isinstance(error, MemoryError) or ("RESOURCE_EXHAUSTED" in text and "memory" in text.lower())
    line = " ".join(f"{'out of memory: ' * exhausted}{text}".split())
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 4]} ..."


class _Refused(UserError):
    """What all processes agreed not to begin."""


def _claim(folder: Path, run: RunConfig, processes: Processes, lease: Lease | None) -> Lease | None:
    """A lease for process 0, which may have one already, if nobody else has the run."""
    busy = None
    if processes.leads and lease is None:
        place = store.RunStore(folder, run)
        try:
            lease = claim(run_files(place.path), run.run, Observer(), after=place.status()["attempt"])
        except Busy as error:
            busy = str(error)
    busy = processes.tell("claim", busy)
    if busy is not None:
        raise Busy(busy)
    return lease


def _opened(journal: Journal, run: RunConfig, arguments: RunArguments, processes: Processes, *parts: Any) -> _Execution:
    """Everything that the run needs, opened and checked before anything is compiled; refused in all processes if in one."""

    def opened() -> _Execution:
        journal.begin()
        return _Execution(journal, run, arguments, processes, *parts)

    execution = _in_all(processes, "the run is open", opened)
    _in_all(processes, "its data are the run's", execution.record_data)
    return execution


def _in_all(processes: Processes, name: str, do: Callable[[], T]) -> T:
    """What `do` returns, unless in some process it raises a UserError: then that is raised in all."""
    done, problem = [], None
    try:
        done.append(do())
    except UserError as error:
        problem = str(error)
    try:
        processes.agree(name, problem)
    except UserError as error:
        raise _Refused(str(error)) from error
    return done[0]


class _Execution:
    """The parts of one attempt, made once and used at every stop."""

    def __init__(
        self,
        journal: Journal,
        run: RunConfig,
        arguments: RunArguments,
        processes: Processes,
        preemption: Preemption,
        watchdog: Watchdog,
    ):
        self.journal, self.run, self.arguments = journal, run, arguments
        self.preemption, self.watchdog = preemption, watchdog
        self.program: Program = build(run, make_mesh(arguments.mesh), arguments)
        self.meter = Meter(run, self.program.devices)
        self._check_scores()
        self.dataset = self._dataset()
        folder = journal.record.path
        self.checkpoints = CheckpointWriter(
            folder / "checkpoints", run.hash, arguments.keep_checkpoints, journal.fence, processes
        )
        self.averages = CheckpointWriter(folder / "ema", run.hash, None, journal.fence, processes)
        device = self.program.devices[0]
        float32 = applied(run.model, compute_on(device, "float32", run.model), device.platform)
        sampler = Sampler(float32, run.model, run.diffusion, arguments.sample_batch_size, run.objective)
        self.draws = Draws(sampler, processes, self._go_on)

    def __enter__(self) -> _Execution:
        self.journal.open_mirror()
        return self

    def __exit__(self, *raised: Any) -> None:
        for writer in (self.averages, self.checkpoints):
            writer.__exit__(*raised)

    def finish(self) -> None:
        """Do what is missing: the steps, then at each stop the evaluations."""
        with self.journal.timed("restore"):
            state = self._restore()
        for evaluation in self.journal.missing_evaluations():
            if evaluation.step < self.step:
                self._evaluate(evaluation, self._kept_average(evaluation))
        self._evaluate_now(state)
        carried = self._carried()
        length = steps_per_dispatch(self.run, self.arguments, self.program.devices[0].platform)
        for stop in self._stops():
            with self.journal.timed("train"):
                state = train(
                    self.program,
                    state,
                    self.dataset,
                    stop,
                    self.arguments.log_every,
                    self.journal.log,
                    length=length,
                    meter=self.meter,
                    interrupted=lambda step: self._must_stop(),
                    carried=carried,
                )
            reached = int(state.step)
            if reached < stop:
                self.journal.keep_unfinished(reached, carried[0]._asdict() if carried else {})
            self._save(reached, state)
            if reached < stop:
                self._settle()
                raise Stopped
            self._evaluate_now(state)
        self._settle()

    def record_data(self) -> None:
        """Put on record what the run is trained on, where that is the user's own."""
        if self.run.data.is_latent:
            from dit.runs.inputs import identity

            self.journal.trained_on(identity(self.dataset), self.arguments.data)

    @property
    def step(self) -> int:
        """Steps that training has done and that are saved, or being saved."""
        return self.journal.progress["step"]

    def _must_stop(self) -> bool:
        """Asked at every step and every batch of samples: a sign of life, and the place where errors of the background come out."""
        self.watchdog.feed()
        self.averages.check()
        self.checkpoints.check()
        return self.preemption.reached()

    def _go_on(self) -> None:
        if self._must_stop():
            self._settle()
            raise Stopped

    def _settle(self) -> None:
        """Wait until everything saved is on disk."""
        with self.journal.timed("save"):
            self.averages.wait()
            self.checkpoints.wait()

    def _restore(self) -> TrainState:
        restored = self.checkpoints.restore_latest(self.program.abstract(), self.journal.warn)
        if restored is None:
            self.journal.progress["step"] = 0
            return self.program.init()
        self.journal.progress["step"], state = restored
        if self._is_scored(self.step):
            self.averages.save(self.step, state.ema)  # the attempt before may have died between the two
        return state

    def _carried(self) -> list[Metrics]:
        """Metrics of the steps before this one that an attempt was stopped too early to log."""
        kept: dict[str, Any] = self.journal.unfinished(self.step)
        return [Metrics(**kept)] if kept else []

    def _stops(self) -> list[int]:
        every = self.arguments.checkpoint_every
        stops = {e.step for e in self.run.evaluations} | set(range(every, self.run.steps, every)) | {self.run.steps}
        return sorted(stop for stop in stops if stop > self.step)

    def _is_scored(self, step: int) -> bool:
        return any(e.step == step for e in self.run.evaluations)

    def _save(self, step: int, state: TrainState) -> None:
        self.journal.sync()  # no checkpoint lies beyond the rows before it
        with self.journal.timed("save"):
            self.averages.wait()  # no newer state replaces the one that an average is still in
            if self._is_scored(step):
                self.averages.save(step, state.ema)
            self.checkpoints.save(step, state)
        self.journal.stopped_at(step)

    def _evaluate_now(self, state: TrainState) -> None:
        for evaluation in self.journal.missing_evaluations():
            if evaluation.step == self.step:
                self._evaluate(evaluation, state.ema if evaluation.ema else state.params)

    def _kept_average(self, evaluation: Evaluation) -> PyTree:
        step = evaluation.step
        if evaluation.ema and step in self.averages.steps():
            try:
                return self.averages.restore(step, self.program.abstract().ema)
            except Corrupt as error:
                self.averages.set_aside(step)
                self.journal.warn(f"the averaged weights of step {step} are corrupt and were set aside ({error})")
        raise UserError(
            f"no {'averaged' if evaluation.ema else 'raw'} weights are kept of step {step}, which training has passed: "
            "declare the evaluation before training, or move the run's folder away to train it again"
        )

    def _evaluate(self, evaluation: Evaluation, params: PyTree) -> None:
        self.journal.event("score", step=evaluation.step)
        with self.journal.timed("score"):
            judge = open_scorer(self.run, evaluation, self.arguments)
            protocol = judge.protocol(self.run, evaluation)
            earlier = self.journal.earlier(evaluation, protocol)
            metrics = tuple(metric for metric in evaluation.metrics if evaluation.column(metric) not in earlier)
            made_of = [self.run.hash, evaluation.step, evaluation.ema, protocol, metrics, self.draws.batch_size]
            place = self.journal.record.drawn_path(evaluation)
            kept = KeptSamples(place, made_of, self.journal.processes, self.journal.fence)
            weak = self._weak_model(evaluation)
            found = self.draws.score(judge, evaluation, params, kept, metrics, weak)
        self.journal.scored(evaluation, found, earlier, protocol, judge.floor)

    def _weak_model(self, evaluation: Evaluation) -> Weak | None:
        """What an evaluation with autoguidance steers away from: averaged weights of another cell of the study."""
        weak = evaluation.autoguidance
        if weak is None:
            return None
        path = self.journal.record.path.parent / weak.run
        if not path.is_dir():
            raise UserError(
                f"autoguidance by {weak.run}, which is not in the study yet: sweep it first, then retry this run"
            )
        loaded = open_checkpoint(path, weak.step)
        return Weak(loaded.model, loaded.apply, loaded.params)

    def _check_scores(self) -> None:
        """What scores need, known before training: what is missing should not be noticed days later.

        Scorers that need files or code of the user's are opened; the others take seconds once they are needed.
        """
        check_scored(self.run)
        for evaluation in self.journal.missing_evaluations():
            require_precision(evaluation.precision, self.program.devices[0])
            parts = (evaluation.features, *evaluation.metrics)
            if self.run.data.is_latent or evaluation.features == INCEPTION or any("@" in part for part in parts):
                open_scorer(self.run, evaluation, self.arguments).rehearse(evaluation, self.run.data)

    def _dataset(self) -> Dataset:
        if self.run.data.is_latent:
            from dit.runs.inputs import open_training_data

            return open_training_data(self.run, self.arguments, self.program.rows)
        images = load_images(self.run.data.name, self.run.data.source)
        return ImageDataset(*images, self.run.batch_size, self.run.seed, self.program.rows)
