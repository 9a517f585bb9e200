"""The loop around the training step: keeps the devices busy, and turns what they report into rows.

The host never waits for what it has just dispatched: the next batches are on their way to the devices while a step runs, and the metrics of
a block of steps are fetched once the next block's first step is on its way.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dit.data.batches import Batch, Dataset
from dit.design.config import RunArguments, RunConfig
from dit.design.flops import macs, train_gflops
from dit.train.step import Metrics, Program, TrainState
from dit.train.throughput import Meter

IN_FLIGHT = 4
"""Dispatches that may be under way or waiting for the device, their batches held in its memory."""
SHORT_STEP = 2e9
"""Operations below which a step on a CPU is short beside the time it takes to dispatch it; a thousand times that on an accelerator."""
MAX_STEPS_PER_DISPATCH = 10


class Diverged(ArithmeticError):
    """Training went wrong at `step`."""

    def __init__(self, step: int, message: str):
        self.step = step
        super().__init__(message)


class NonFiniteLoss(Diverged):
    """The loss or the gradient stopped being finite."""

    def __init__(self, step: int, loss: float, grad_norm: float):
        self.loss = loss
        super().__init__(step, f"not finite at step {step}: loss {loss}, gradient norm {grad_norm}")


class GradientSpike(Diverged):
    """The gradient's norm left its running level far behind, and the run's guard says to stop then."""

    def __init__(self, step: int, loss: float, grad_norm: float, factor: float):
        super().__init__(
            step,
            f"spike at step {step}: gradient norm {grad_norm:.4g} is over {factor:g} times its running level, loss {loss:.4g}",
        )


class Dispatch(NamedTuple):
    """Steps `first` ... `first + length - 1`, given to the devices at once."""

    first: int
    length: int


def steps_per_dispatch(run: RunConfig, arguments: RunArguments, platform: str) -> int:
    """How many steps to dispatch at once: as asked, or several for short steps, never across the end of a row or a stop.

    The number divides everything at which the loop has to stop, so that one program serves all of a run.
    """
    stops = [arguments.log_every, arguments.checkpoint_every, run.steps, *(e.step for e in run.evaluations)]
    common = math.gcd(*stops)
    asked = arguments.steps_per_dispatch
    if not asked:
        operations = 2 * 3 * macs(run.model) * run.batch_size
        short = operations < SHORT_STEP * (1 if platform == "cpu" else 1000)
        asked = MAX_STEPS_PER_DISPATCH if short else 1
    return max(length for length in range(1, asked + 1) if common % length == 0)


def dispatches(start: int, stop: int, length: int) -> Iterator[Dispatch]:
    """Steps `start` to `stop` in groups of `length` at multiples of it, one at a time where a group does not fit."""
    step = start
    while step < stop:
        taken = length if step % length == 0 and step + length <= stop else 1
        yield Dispatch(step, taken)
        step += taken


def train(
    program: Program,
    state: TrainState,
    dataset: Dataset,
    stop: int,
    block: int,
    log: Callable[[dict[str, Any]], None],
    *,
    length: int = 1,
    meter: Meter | None = None,
    interrupted: Callable[[int], bool] = lambda step: False,
    carried: list[Metrics] | None = None,
) -> TrainState:
    """Advance `state` to step `stop`; `log` gets a row for every `block` steps (at multiples of it) and for the last ones.

    A row's losses are means over its block. `images_per_s` and `mfu` are those of steps that follow one another: null where only the first
    dispatch, for which the pipeline was empty, fell in the block. `state` is used up.

    Args:
        length: steps dispatched at once where they fit.
        meter: keeps time across calls; one of its own otherwise.
        interrupted: asked before each dispatch with the steps done; true ends the loop there, and the state returned says where.
        carried: metrics of the steps before `state` that an interrupted call left without a row; they are taken into the first one, and
            those that this call leaves take their place.

    Raises:
        Diverged: naming the step at which the guard stops the run.
    """
    run, start = program.run, int(state.step)
    meter = meter or Meter(run, program.devices)
    carried = [] if carried is None else carried
    rows = _Rows(run, block, log, meter, start, carried)
    batches = _Prefetched(program, dataset, dispatches(start, stop, math.gcd(length, block)))
    flying: deque[Any] = deque()
    leaves, structure = jax.tree.flatten(state)
    distant, compiled = program.devices[0].platform != "cpu", set()
    while (group := batches.next_group()) is not None:
        if interrupted(group.first):
            carried.extend(rows.interrupt())
            break
        advance, batch = program.step if group.length == 1 else program.steps, batches.take()
        if group.length not in compiled:
            compiled.add(group.length)
            rows.stop_clock(meter.compile(advance, leaves, batch))
        called = time.perf_counter()
        leaves, metrics = advance.flat(leaves, *batch)
        if group.first == start:
            jax.block_until_ready(metrics)  # once: what the others take is measured from its end
            rows.start_clock(time.perf_counter() - called)
        rows.add(group, metrics)
        if distant:
            jax.tree.map(lambda value: value.copy_to_host_async(), metrics)
        batches.fill()
        flying.append(metrics.loss)
        if len(flying) > IN_FLIGHT:
            jax.block_until_ready(flying.popleft())
    rows.finish()
    return jax.tree.unflatten(structure, leaves)


class _Prefetched:
    """Batches on their way to the devices, a few dispatches ahead of the steps that use them."""

    DEPTH = 2

    def __init__(self, program: Program, dataset: Dataset, groups: Iterator[Dispatch]):
        self._program, self._dataset, self._groups = program, dataset, groups
        self._ready: deque[tuple[Dispatch, Any]] = deque()
        self.fill()

    def next_group(self) -> Dispatch | None:
        return self._ready[0][0] if self._ready else None

    def take(self) -> Any:
        return self._ready.popleft()[1]

    def fill(self) -> None:
        """Prepare as many batches as are missing. The devices work meanwhile."""
        while len(self._ready) < self.DEPTH and (group := next(self._groups, None)) is not None:
            self._ready.append((group, self._put(group)))

    def _put(self, group: Dispatch) -> Any:
        if group.length == 1:
            return self._program.put(self._dataset.batch(group.first))
        batches: list[Batch] = [self._dataset.batch(step) for step in range(group.first, group.first + group.length)]
        images, labels = (np.stack(parts) for parts in zip(*batches))
        return self._program.put((images, labels), stacked=True)


class _Rows:
    """Collects metrics on the devices and logs a block of them once the next block is under way."""

    def __init__(
        self,
        run: RunConfig,
        block: int,
        log: Callable[[dict[str, Any]], None],
        meter: Meter,
        start: int,
        carried: list[Metrics],
    ):
        self._run, self._block, self._log, self._meter, self._start = run, block, log, meter, start
        self._pending, self._carried = carried[:], sum(np.size(metrics.loss) for metrics in carried)
        carried.clear()
        self._finished: list[Metrics] = []
        self._step = start
        self.start_clock(0.0)
        self._timed = 0

    def start_clock(self, first_s: float) -> None:
        """Measure from here on; the first dispatch took so long by itself."""
        self._clock, self._first_s = time.perf_counter(), first_s

    def stop_clock(self, seconds: float) -> None:
        """Leave out so many seconds, in which no step was dispatched."""
        self._clock += seconds

    def add(self, group: Dispatch, metrics: Metrics) -> None:
        if self._finished:  # the block before is fetched while this dispatch runs
            self._fetch(self._finished, self._step)
            self._finished = []
        self._pending.append(metrics)
        self._step = group.first + group.length
        self._timed += group.length if group.first > self._start else 0
        if self._step % self._block == 0:
            self._pending, self._finished = [], self._pending

    def interrupt(self) -> list[Metrics]:
        """Take out the steps whose block is not whole yet, once it is sure that none of them stops the run."""
        left, self._pending = [_joined(self._pending)] if self._pending else [], []
        if left:
            _row(self._run, self._step, left[0])
        return left

    def finish(self) -> None:
        last = self._finished or self._pending
        if last:
            self._fetch(last, self._step)

    def _fetch(self, block: list[Metrics], step: int) -> None:
        """Fetch the metrics of the steps before `step` and log their row."""
        metrics = _joined(block)
        now = time.perf_counter()
        row = _row(self._run, step, metrics)
        steps = len(metrics.loss) - self._carried  # those of an earlier attempt took none of this one's time
        timings = self._meter.columns(len(metrics.loss), steps, self._timed, now - self._clock, self._first_s)
        self._log({**row, **timings})
        self._clock, self._first_s, self._timed, self._carried = now, 0.0, 0, 0


def _joined(block: list[Metrics]) -> Metrics:
    """Fetched from the devices, one after the other."""
    parts: Any = jax.device_get(block)
    joined: Any = [np.concatenate([np.atleast_1d(part[i]) for part in parts]) for i in range(len(Metrics._fields))]
    return Metrics(*joined)


def _row(run: RunConfig, step: int, metrics: Metrics) -> dict[str, Any]:
    """Means over a block that ends at `step`, skipped steps left out, and how many the guard saw.

    Raises:
        Diverged: at the first step at which the guard stops the run.
    """
    first = step - len(metrics.loss) + 1
    values = {name: getattr(metrics, name) for name in ("loss", "mse", "vb", "grad_norm")}
    finite = np.all([np.isfinite(value) for value in values.values()], axis=0)
    stops = ~finite & ~metrics.skipped
    if run.guard.spike == "stop":
        stops = stops | metrics.spiked
    for at in np.flatnonzero(stops):
        loss, grad_norm = float(metrics.loss[at]), float(metrics.grad_norm[at])
        if not finite[at]:
            raise NonFiniteLoss(first + int(at), loss, grad_norm)
        raise GradientSpike(first + int(at), loss, grad_norm, run.guard.spike_factor)
    used = ~metrics.skipped
    means = {name: float(np.mean(v[used], dtype=np.float64)) if used.any() else None for name, v in values.items()}
    counts = {"spikes": int(metrics.spiked.sum()), "skipped": int(metrics.skipped.sum())}
    return {"step": step, **means, **counts, "train_gflops": train_gflops(run, step)}
