"""What one attempt at a run puts on record. Every write of a run passes through here, but for its checkpoints, which ask the same fence.

Of several processes only process 0 writes, and only while its lease holds; in the others the same calls do nothing, so that the loop of
a run reads the same in all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dit.design.config import Evaluation, RunArguments, RunConfig, digest
from dit.design.rows import recorded_metrics, recorded_row, step_columns
from dit.errors import UserError
from dit.hosts.processes import Processes
from dit.score.scoring import Scored
from dit.store import study as store
from dit.store.environment import environment
from dit.store.files import whole
from dit.store.goodput import goodput
from dit.store.lease import Lease
from dit.store.mirror import Mirror
from dit.store.study import RunStore

KEPT_SAMPLES = 16
"""Images kept of each evaluation, for the figures."""

Report = Callable[[dict[str, Any]], None]


class Journal:
    """The record of one attempt. `progress` is its step and loss as far as they are known, and its number."""

    def __init__(
        self,
        folder: Path,
        study: str,
        run: RunConfig,
        arguments: RunArguments,
        report: Report,
        lease: Lease | None,
        processes: Processes,
    ):
        self.study, self.run, self._lease, self.processes = study, run, lease, processes
        self.fence = lease.check if lease is not None else store.no_fence
        self.record = RunStore(folder, run, self.fence)
        self._report = report if processes.leads else lambda event: None
        before = {key: value for key, value in self.record.status().items() if key in ("step", "loss")}
        self.progress = processes.tell("progress", {**before, "attempt": lease.token if lease is not None else 0})
        self._arguments, self._mirror, self._metrics = arguments, None, None
        self._began, self._clock, self._seconds = time.time(), time.monotonic(), {}

    @property
    def attempt(self) -> int:
        """The attempt's number, which is its fencing token."""
        return self.progress["attempt"]

    def begin(self) -> None:
        """Make the run's folder or check that it is this run's, and record where and under what the attempt runs."""
        if self.processes.leads:
            self.record.create()
            self.record.metrics()  # a run does not go on after rows that are damaged or missing
            place = self.record.path / f"environment-{self.attempt:04d}.json"
            store.write_json(place, environment(), self.fence)
            self.record.set_status(store.RUNNING, **self.progress)

    def open_mirror(self) -> None:
        """Start the mirror, if one was asked for, once the run is known to be sound."""
        mode = self._arguments.wandb if self.processes.leads else "off"
        self._mirror = Mirror(mode, self.run, self.study, self.record.path, self.warn)

    def trained_on(self, data: dict[str, Any], source: str) -> None:
        """Record in the run's folder (`data.json`) what the data at `source` are, so that the run is never resumed on others.

        Raises:
            UserError: if the run was begun on others, or process 0 was given others.
        """
        mine = {"schema_version": store.SCHEMA_VERSION, **data}
        if self.processes.tell("data", mine) != mine:
            raise UserError(f"{source} holds other latents than process 0 was given: give all processes the same")
        if self.processes.leads:
            path = self.record.path / "data.json"
            if not path.exists():
                store.write_json(path, mine, self.fence)
            elif store.read_json(path) != mine:
                raise UserError(
                    f"{source} holds other latents than this run was begun on: give those, or move {path.parent} away"
                )

    def missing_evaluations(self) -> list[Evaluation]:
        """As `RunStore.missing_evaluations`, the same in every process."""
        keys = self.processes.tell("missing", [[e.step, e.key] for e in self.record.missing_evaluations()])
        return [e for e in sorted(self.run.evaluations, key=lambda e: e.step) if [e.step, e.key] in keys]

    def log(self, row: dict[str, Any]) -> None:
        """Record a row of training metrics."""
        self.progress["loss"] = row["loss"]
        if self.processes.leads:
            self._metrics = self._metrics or self.record.metrics_writer(self.attempt)
            self._metrics.write(row)
            if self._mirror is not None:
                self._mirror.log(row)
            if self._lease is not None:
                self._lease.note(**{name: row[name] for name in ("step", "loss", "images_per_s")})
        self.event("step", **row)

    def sync(self) -> None:
        """Make the rows so far survive a power cut."""
        if self._metrics is not None:
            self._metrics.sync()

    def _logged(self) -> dict[str, Any]:
        """The end of the rows so far, which are on disk before a status tells of them."""
        self.sync()
        return self._metrics.end if self._metrics is not None else {}

    def stopped_at(self, step: int) -> None:
        """Record that training stands at a step, and the attempt's times."""
        self.progress["step"] = step
        if self.processes.leads:
            self.record.set_status(store.RUNNING, self._logged(), **self.progress)
            self._write_times()

    def keep_unfinished(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Keep the metrics of the steps before `step` that no row tells of yet: the row will, once its block is whole."""
        if self.processes.leads:
            exact = {name: [str(array.dtype), [float(x).hex() for x in array]] for name, array in metrics.items()}
            value = {"schema_version": store.SCHEMA_VERSION, "step": step, "metrics": exact}
            store.write_json(self._unfinished, value, self.fence)

    def unfinished(self, step: int) -> dict[str, np.ndarray]:
        """What `keep_unfinished` kept of that very step; nothing if it was of another."""
        found = {}
        if self.processes.leads and self._unfinished.exists():
            value = store.read_json(self._unfinished)
            found = value["metrics"] if value["step"] == step else {}
        found = self.processes.tell("unfinished", found)
        return {name: np.array([*map(float.fromhex, values)]).astype(dtype) for name, (dtype, values) in found.items()}

    @property
    def _unfinished(self) -> Path:
        return self.record.path / "metrics" / "unfinished.json"

    def earlier(self, evaluation: Evaluation, protocol: dict[str, Any]) -> dict[str, Any]:
        """Scores of the evaluation that are on record, by their columns, of which more metrics are asked for now.

        Raises:
            UserError: if they were taken under another protocol.
        """
        path = self.record.evaluation_path(evaluation)
        if not path.exists():
            return {}
        before = store.read_evaluation(path)
        if digest(before["protocol"]) != digest(protocol):
            apart = [name for name, value in protocol.items() if before["protocol"].get(name) != value]
            raise UserError(
                f"{path} was scored under another protocol ({', '.join(apart)}): move it away to take all its metrics again"
            )
        row = recorded_row(self.run, self.study, before)
        columns = map(evaluation.column, recorded_metrics(before))
        return {column: row[column] for column in columns}

    def scored(
        self,
        evaluation: Evaluation,
        found: Scored,
        earlier: dict[str, Any],
        protocol: dict[str, Any],
        floor: float | None,
    ) -> None:
        """Record scores, beside earlier ones of the same samples: the first samples, then the file that says they are there."""
        taken = {evaluation.column(metric): value for metric, value in found.scores.items()}
        if self.processes.leads:
            with whole(self.record.samples_path(evaluation), self.fence) as beside, open(beside, "wb") as file:
                np.savez(file, images=found.images[:KEPT_SAMPLES], labels=found.labels[:KEPT_SAMPLES])
            value = {
                "schema_version": store.EVALUATION_VERSION,
                "evaluation": dataclasses.asdict(evaluation),
                "scores": earlier | taken,
                "protocol": protocol,
                "floor": floor,
            }
            store.write_json(self.record.evaluation_path(evaluation), value, self.fence)
            self.record.drawn_path(evaluation).unlink(missing_ok=True)
            if self._mirror is not None:
                now = step_columns(self.run, evaluation.step)
                self._mirror.log({name: now[name] for name in ("step", "train_gflops")} | taken)
        self.event("scored", step=evaluation.step, **taken)

    def end(self, state: str, how: str = "", **fields: Any) -> None:
        """Record the run's state after this attempt and let the run go; `how` is the attempt's end where it is not the state."""
        if self.processes.leads:
            self._write_times()
            self.record.set_status(state, self._logged(), **self.progress, **fields, **self._goodput())
            if self._lease is not None:
                self._lease.end(how or state)

    def close(self) -> None:
        """Close what is open. Nothing is recorded."""
        if self._metrics is not None:
            self._metrics.close()
        if self._mirror is not None:
            self._mirror.close()

    def event(self, name: str, **fields: Any) -> None:
        """Tell whoever watches."""
        self._report({"event": name, **fields})

    def warn(self, message: str) -> None:
        """Tell whoever watches of something that does not stop the run."""
        self.event("warning", message=message)

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time within as spent on `phase`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.monotonic() - start

    def _goodput(self) -> dict[str, float]:
        """Of all attempts at the run, this one included; left out if an earlier one's rows cannot be read."""
        alive = self._lease.attempt() if self._lease is not None else None
        with contextlib.suppress(UserError):
            found = goodput(self.record.path, self.run.batch_size, alive)
            seconds = {"productive_s": round(found.productive_s, 3), "wall_s": round(found.wall_s, 3)}
            return {"goodput": round(found.goodput, 4), **seconds}
        return {}

    def _write_times(self) -> None:
        elapsed = time.monotonic() - self._clock
        value = {
            "schema_version": store.SCHEMA_VERSION,
            "began": self._began,
            "elapsed_s": elapsed,
            "seconds": self._seconds,
        }
        store.write_json(self.record.path / f"times-{self.attempt:04d}.json", value, self.fence)
