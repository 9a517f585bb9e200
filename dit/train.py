"""One training step, pure and compiled, and the short loop around it.

Noise, timesteps and label drops follow (seed, step, position in the global batch): a run does not depend on where it was
interrupted or how a batch is split. The loop never waits for the step it just dispatched: the metrics of a block of steps are fetched
once the next block's first step is on its way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from dit.config import RunConfig
from dit.data import Dataset
from dit.diffusion import Images, linear_schedule, tables, training_losses
from dit.flops import train_gflops
from dit.model import DiT
from dit.optim import adamw, moving_average


class NonFiniteLoss(ArithmeticError):
    """Training diverged: the loss or the gradient stopped being finite."""

    def __init__(self, step: int, loss: float, grad_norm: float):
        self.step, self.loss = step, loss
        super().__init__(f"not finite at step {step}: loss {loss}, gradient norm {grad_norm}")


class TrainState(NamedTuple):
    """Everything that a step changes."""

    params: PyTree
    ema: PyTree
    opt_state: PyTree
    step: Int[Array, ""]


class Metrics(NamedTuple):
    """Means over one batch."""

    loss: Float[Array, ""]
    mse: Float[Array, ""]
    vb: Float[Array, ""]
    grad_norm: Float[Array, ""]


class Program(NamedTuple):
    """A run's compiled parts: `model` applies parameters, `init` makes the first state, `step` advances one batch."""

    model: Callable[[PyTree, Array, Array, Array], Array]
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]


class Draws(NamedTuple):
    """The randomness of training examples."""

    timesteps: Int[Array, " B"]
    noise: Images
    labels: Int[Array, " B"]


def draw_examples(run: RunConfig, step: Int[Array, ""], positions: Int[Array, " B"], labels: Int[Array, " B"]) -> Draws:
    """Timestep, noise and (perhaps dropped) label of the examples at `positions` in the global batch of `step`."""
    step_key = jax.random.fold_in(_keys(run.seed)[1], step)
    shape = (run.model.input_size, run.model.input_size, run.model.in_channels)

    def one(position: Int[Array, ""], label: Int[Array, ""]) -> Draws:
        time_key, noise_key, drop_key = jax.random.split(jax.random.fold_in(step_key, position), 3)
        timestep = jax.random.randint(time_key, (), 0, run.diffusion.timesteps)
        dropped = jax.random.bernoulli(drop_key, run.model.class_dropout_prob)
        null = jnp.asarray(run.model.num_classes, label.dtype)
        return Draws(timestep, jax.random.normal(noise_key, shape), jnp.where(dropped, null, label))

    return jax.vmap(one)(positions, labels)


def _keys(seed: int) -> Array:
    """Initialisation key and training key of a run."""
    return jax.random.split(jax.random.key(seed), 2)


def build(run: RunConfig) -> Program:
    """The run's model, initial state and training step. Nothing is compiled until it is called."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: DiT(run.model, rngs=nnx.Rngs(0))))
    optimizer = adamw(run.optim)

    def model(params: PyTree, x: Array, t: Array, y: Array) -> Array:
        return nnx.merge(graph, params)(x, t, y)

    @jax.jit
    def init() -> TrainState:
        _, params = nnx.split(DiT(run.model, rngs=nnx.Rngs(_keys(run.seed)[0])))
        return TrainState(params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.zeros((), jnp.int32))

    def step(state: TrainState, images: Images, labels: Int[Array, " B"]) -> tuple[TrainState, Metrics]:
        table = tables(linear_schedule(run.diffusion))
        draws = draw_examples(run, state.step, jnp.arange(images.shape[0]), labels)

        def mean_loss(params: PyTree) -> tuple[Array, Metrics]:
            losses = training_losses(
                lambda x, t, y: model(params, x, t, y), table, images, draws.labels, draws.timesteps, draws.noise
            )
            loss, mse, vb = (jnp.mean(part) for part in losses)
            return loss, Metrics(loss, mse, vb, jnp.zeros(()))

        gradients, metrics = jax.grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: PyTree = optax.apply_updates(state.params, updates)
        ema = moving_average(state.ema, params, run.optim.ema_decay)
        metrics = metrics._replace(grad_norm=optax.tree.norm(gradients))
        return TrainState(params, ema, opt_state, state.step + 1), metrics

    return Program(model, init, jax.jit(step, donate_argnums=0))


def train(
    run: RunConfig,
    program: Program,
    state: TrainState,
    dataset: Dataset,
    stop: int,
    block: int,
    log: Callable[[dict[str, Any]], None],
) -> TrainState:
    """Advance `state` to step `stop`; `log` gets a row for every `block` steps (at multiples of it) and for the last ones.

    A row's losses are means over its block; `images_per_s` is null where only the first, compiling step was timed. `state` is donated.

    Raises:
        NonFiniteLoss: naming the step at which loss or gradient norm stopped being finite.
    """
    start = int(state.step)
    pending: list[Metrics] = []
    finished: list[Metrics] = []
    clock, timed = time.perf_counter(), 0
    for step in range(start, stop):
        state, metrics = program.step(state, *dataset.batch(step))
        if step == start:
            jax.block_until_ready(metrics)  # once: this step compiled, and the clock starts after it
            clock = time.perf_counter()
        if finished:  # the block before is fetched while this step runs
            clock = _log_block(run, step, finished, clock, timed, log)
            finished, timed = [], 0
        pending.append(metrics)
        timed += step > start
        if (step + 1) % block == 0:
            pending, finished = finished, pending
    last = finished or pending
    if last:
        _log_block(run, stop, last, clock, timed, log)
    return state


def _log_block(
    run: RunConfig, step: int, block: list[Metrics], clock: float, timed: int, log: Callable[[dict[str, Any]], None]
) -> float:
    """Fetch the metrics of the steps before `step`, log their row, and return the time at which they were there."""
    row = _row(run, step, jax.device_get(block))
    now = time.perf_counter()
    row["images_per_s"] = timed * run.batch_size / (now - clock) if timed else None
    log(row)
    return now


def _row(run: RunConfig, step: int, block: list[Metrics]) -> dict[str, Any]:
    for offset, metrics in enumerate(block):
        if not all(map(np.isfinite, metrics)):
            raise NonFiniteLoss(step - len(block) + 1 + offset, float(metrics.loss), float(metrics.grad_norm))
    means = {name: float(np.mean([getattr(m, name) for m in block], dtype=np.float64)) for name in Metrics._fields}
    return {"step": step, **means, "train_gflops": train_gflops(run, step)}
