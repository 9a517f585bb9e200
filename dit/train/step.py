"""One training step, pure and compiled, for one device or a mesh of them.

Noise, timesteps and label drops follow (seed, step, position in the global batch): a run does not depend on where it was interrupted,
how a batch is split or accumulated, or over how many devices. `dit.train.loop` drives the step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from dit.design.config import RunArguments, RunConfig
from dit.design.topology import require_batch
from dit.diffusion.objectives import Objective
from dit.diffusion.process import Images
from dit.model import mesh as meshes
from dit.model.compute import Compute, compute_on, require_precision
from dit.model.memory import choose_remat
from dit.model.transformer import applied, network
from dit.train.optim import adamw, gradient_norm, level_before, moving_average


class TrainState(NamedTuple):
    """Everything that a step changes."""

    params: PyTree
    ema: PyTree
    opt_state: PyTree
    step: Int[Array, ""]


class Metrics(NamedTuple):
    """Of one step: means over its batch, the gradient's norm, and what the guard saw. Of several steps: each stacked."""

    loss: Float[Array, "*steps"]
    mse: Float[Array, "*steps"]
    vb: Float[Array, "*steps"]
    grad_norm: Float[Array, "*steps"]
    spiked: Bool[Array, "*steps"]
    skipped: Bool[Array, "*steps"]


@dataclass(frozen=True)
class Advance:
    """`(state, images, labels) -> (state, metrics)`, compiled; the state given is used up.

    `flat` does the same on a list of the state's leaves. Calling with the state itself walks through Flax's nodes twice, in Python, which
    takes as long as a small model's step: a loop flattens once.
    """

    flat: Callable[[list[Any], Any, Any], tuple[list[Any], Metrics]]

    def __call__(self, state: TrainState, images: Any, labels: Any) -> tuple[TrainState, Metrics]:
        leaves, structure = jax.tree.flatten(state)
        leaves, metrics = self.flat(leaves, images, labels)
        return jax.tree.unflatten(structure, leaves), metrics

    def compile(self, leaves: list[Any], images: Any, labels: Any) -> None:
        """Have `flat` traced and compiled for arguments of these shapes; nothing is done where it has been."""
        self.flat.lower(leaves, images, labels).compile()  # type: ignore[attr-defined]

    def lower(self, state: TrainState, images: Any, labels: Any) -> jax.stages.Lowered:
        """Traced and lowered for arguments of these shapes."""
        return self.flat.lower(jax.tree.leaves(state), images, labels)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Program:
    """A run's compiled parts.

    Attributes:
        model: `(params, x, t, y) -> output`, with float32 parameters in either precision.
        init: the first state, laid out over the mesh.
        step: of one batch.
        steps: of several batches stacked in front, one after another.
        mesh: `None` for one device.
        compute: how the model is computed, with the rematerialisation that was chosen.
    """

    run: RunConfig
    model: Callable[[PyTree, Array, Array, Array], Array]
    init: Callable[[], TrainState]
    step: Advance
    steps: Advance
    mesh: Mesh | None
    compute: Compute

    def abstract(self) -> TrainState:
        """Shape, format and place of every array of a state, without making one: what a checkpoint is restored to."""
        shapes = jax.eval_shape(self.init)
        if self.mesh is None:
            return shapes
        places = meshes.state_sharding(shapes, self.mesh)
        return jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, places)

    def put(self, batch: tuple[np.ndarray, np.ndarray], stacked: bool = False) -> tuple[Any, Any]:
        """This process's rows of a batch (or of several, stacked) on their way to the devices; one CPU takes them as they are."""
        if self.mesh is None and self.devices[0].platform == "cpu":
            return batch
        return meshes.put_batch(self.mesh, batch, self.run.batch_size, stacked)

    @property
    def devices(self) -> list[Any]:
        """All devices that take part, those of other processes included."""
        return jax.devices()[:1] if self.mesh is None else list(self.mesh.devices.flat)

    @property
    def rows(self) -> np.ndarray:
        """Rows of the global batch that this process provides."""
        return meshes.local_rows(self.mesh, self.run.batch_size)


class Means(NamedTuple):
    """Of a batch's losses."""

    loss: Float[Array, ""]
    mse: Float[Array, ""]
    vb: Float[Array, ""]


class Draws(NamedTuple):
    """The randomness of training examples."""

    times: Int[Array, " B"] | Float[Array, " B"]
    noise: Images
    labels: Int[Array, " B"]


def draw_examples(run: RunConfig, step: Int[Array, ""], positions: Int[Array, " B"], labels: Int[Array, " B"]) -> Draws:
    """Time, noise and (perhaps dropped) label of the examples at `positions` in the global batch of `step`."""
    step_key = jax.random.fold_in(_keys(run.seed)[1], step)
    shape = (run.model.input_size, run.model.input_size, run.model.in_channels)
    objective = Objective(run.objective, run.diffusion)

    def one(position: Int[Array, ""], label: Int[Array, ""]) -> Draws:
        time_key, noise_key, drop_key = jax.random.split(jax.random.fold_in(step_key, position), 3)
        time = objective.draw_time(time_key)
        dropped = jax.random.bernoulli(drop_key, run.model.class_dropout_prob)
        null = jnp.asarray(run.model.num_classes, label.dtype)
        return Draws(time, jax.random.normal(noise_key, shape), jnp.where(dropped, null, label))

    return jax.vmap(one)(positions, labels)


def _keys(seed: int) -> Array:
    """Initialisation key and training key of a run."""
    return jax.random.split(jax.random.key(seed), 2)


def build(run: RunConfig, mesh: Mesh | None = None, arguments: RunArguments | None = None) -> Program:
    """The run's model, initial state and training step. Nothing is compiled until it is called.

    Args:
        mesh: from `dit.model.mesh.make_mesh`; `None` is the default device.
        arguments: of which `remat` and `accumulate` matter here.

    Raises:
        UserError: if the batch does not divide over the mesh, the device lacks the precision, or no rematerialisation makes it fit.
    """
    arguments = arguments or RunArguments()
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    require_precision(run.precision, device)
    meshes.require_split(run.model, meshes.mesh_shape(mesh))
    require_batch(run.batch_size, meshes.mesh_shape(mesh), arguments.accumulate)
    compute = compute_on(device, run.precision, run.model, mesh)
    compute = dataclasses.replace(compute, remat=choose_remat(run, compute, arguments, device))
    model, optimizer = applied(run.model, compute, device.platform), adamw(run.optim)

    def init() -> TrainState:
        _, params = nnx.split(network(run.model, rngs=nnx.Rngs(_keys(run.seed)[0])))
        return TrainState(params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.zeros((), jnp.int32))

    step = functools.partial(_step, run, model, optimizer, arguments.accumulate, mesh is None)

    def steps(state: TrainState, images: Array, labels: Array) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda carry, batch: step(carry, *batch), state, (images, labels))

    def flat(advance: Callable) -> Callable:
        def on_leaves(leaves: list[Array], images: Array, labels: Array) -> tuple[list[Array], Metrics]:
            state, metrics = advance(
                jax.tree.unflatten(jax.tree.structure(jax.eval_shape(init)), leaves), images, labels
            )
            return jax.tree.leaves(state), metrics

        return on_leaves

    if mesh is None:
        compile_step = functools.partial(jax.jit, donate_argnums=0)
        compiled = (jax.jit(init), Advance(compile_step(flat(step))), Advance(compile_step(flat(steps))))
    else:
        places, whole = meshes.state_sharding(jax.eval_shape(init), mesh), meshes.whole(mesh)
        row, stacked = meshes.batch_sharding(mesh), meshes.batch_sharding(mesh, stacked=True)
        leaves = jax.tree.leaves(places)
        on_mesh = functools.partial(jax.jit, out_shardings=(leaves, whole), donate_argnums=0)
        compiled = (
            jax.jit(init, out_shardings=places),
            Advance(on_mesh(flat(step), in_shardings=(leaves, row, row))),
            Advance(on_mesh(flat(steps), in_shardings=(leaves, stacked, stacked))),
        )
    return Program(run, model, *compiled, mesh, compute)


def _step(
    run: RunConfig,
    model: Callable,
    optimizer: optax.GradientTransformation,
    accumulate: int,
    one_device: bool,
    state: TrainState,
    images: Images,
    labels: Int[Array, " B"],
) -> tuple[TrainState, Metrics]:
    """Loss and gradient on a batch, AdamW, the moving average, and the guard."""
    loss, gradients = _gradient(run, model, accumulate, state, images, labels)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params: PyTree = optax.apply_updates(state.params, updates)
    after = TrainState(params, moving_average(state.ema, params, run.optim.ema_decay), opt_state, state.step + 1)
    grad_norm = gradient_norm(gradients, together=one_device)
    spiked = grad_norm > run.guard.spike_factor * level_before(opt_state, grad_norm, run.optim)
    skip = jnp.zeros((), bool)
    if run.guard.nonfinite == "skip":
        skip |= ~(jnp.isfinite(loss.loss) & jnp.isfinite(grad_norm))
    if run.guard.spike == "skip":
        skip |= spiked
    if "skip" in (run.guard.nonfinite, run.guard.spike):
        kept = jax.tree.map(lambda old, new: jnp.where(skip, old, new), state, after)
        after = kept._replace(step=after.step)
    return after, Metrics(*loss, grad_norm, spiked, skip)


def _gradient(
    run: RunConfig, model: Callable, accumulate: int, state: TrainState, images: Images, labels: Int[Array, " B"]
) -> tuple[Means, PyTree]:
    """Mean losses over a batch and the gradient of the first, taken in `accumulate` parts of it one after another.

    Part k is rows k, k + accumulate, ...: of each device's rows as many as of any other's.
    """
    objective = Objective(run.objective, run.diffusion)
    table = objective.table()

    def part(images: Images, labels: Int[Array, " b"], positions: Int[Array, " b"]) -> tuple[Means, PyTree]:
        draws = draw_examples(run, state.step, positions, labels)

        def mean_loss(params: PyTree) -> tuple[Array, Means]:
            losses = objective.losses(
                lambda x, t, y: model(params, x, t, y), table, images, draws.labels, draws.times, draws.noise
            )
            means = Means(*(jnp.mean(each) for each in losses))
            return means.loss, means

        gradients, means = jax.grad(mean_loss, has_aux=True)(state.params)
        return means, gradients

    positions = jnp.arange(images.shape[0])
    if accumulate == 1:
        return part(images, labels, positions)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 1, 0)

    parts = (split(images), split(labels), split(positions))
    like = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(part, *(x[0] for x in parts)))
    total, _ = jax.lax.scan(lambda sums, rows: (jax.tree.map(jnp.add, sums, part(*rows)), None), like, parts)
    return jax.tree.map(lambda x: x / accumulate, total)
