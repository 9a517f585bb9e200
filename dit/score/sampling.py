"""Drawing images from a trained model: compiled once per batch shape, whatever the number of sampling steps.

Image `i` of a sampling seed has its own key; its label and all of its noise come from there. So an image does not change with the
batch it is drawn in, and two models given the same seed start from the same noise and labels. Labels may be given instead. A batch is
split over this process's devices. The whole chain is one compiled loop, guided images and their null halves one batch in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, PyTree

from dit.design.config import DiffusionConfig, Evaluation, Precision
from dit.design.config import Model as ModelConfig
from dit.design.guidance import sampler_of
from dit.design.objectives import ObjectiveConfig
from dit.design.parts import load
from dit.design.samplers import plan
from dit.design.schedule import Level
from dit.diffusion.objectives import Denoised, Objective
from dit.diffusion.process import Model, away_from, guided
from dit.diffusion.samplers import Grid, grid, sample
from dit.model.compute import compute_on, require_precision
from dit.model.mesh import here
from dit.model.transformer import applied


class Drawn(NamedTuple):
    """Images in the model's range (or latents), NHWC, and their labels."""

    images: Float32[np.ndarray, "B I I C"]
    labels: Int32[np.ndarray, " B"]


Apply = Callable[[PyTree, Array, Array, Array], Array]


class Weak(NamedTuple):
    """A model to guide away from: its configuration, `apply` in float32, and weights."""

    model: ModelConfig
    apply: Apply
    params: PyTree


class Sampler:
    """Draws from one model. Programs are kept per (sampler, guidance, precision), so several respacings compile once.

    Args:
        apply: `(params, x, t, y) -> output` in float32, as `applied` gives it; an evaluation in bfloat16 makes its own.
        batch_size: images per dispatch, rounded up to a multiple of the devices; the last batch is filled up, so that it compiles once.
    """

    def __init__(
        self,
        apply: Apply,
        model: ModelConfig,
        diffusion: DiffusionConfig,
        batch_size: int,
        objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008
    ):
        devices = jax.local_devices()
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        self._apply, self._model, self._diffusion = apply, model, diffusion
        self._objective = objective
        mesh = Mesh(np.array(devices), ("batch",)) if len(devices) > 1 else None
        self._split = NamedSharding(mesh, PartitionSpec("batch")) if mesh else None
        self._whole = NamedSharding(mesh, PartitionSpec()) if mesh else None
        self._programs: dict[tuple, Callable[..., tuple[Array, Array]]] = {}

    def draw(
        self,
        params: PyTree,
        evaluation: Evaluation,
        start: int,
        stop: int,
        labels: Int32[np.ndarray, " N"] | None = None,
        weak: Weak | None = None,
    ) -> Iterator[Drawn]:
        """Images `start` to `stop` of the evaluation's sampling seed, a batch at a time, in order.

        Image `i` has label `labels[i % len(labels)]` where labels are given, else its own random one. `weak` is the model that
        autoguidance steers away from.
        """
        levels, options = self._levels(evaluation)
        program = self._program(evaluation, options, labels is not None, weak)
        params = here((params, None if weak is None else weak.params))
        if self._whole is not None:
            params, levels = jax.device_put((params, levels), self._whole)
        for first in range(start, stop, self.batch_size):
            indices = first + np.arange(self.batch_size, dtype=np.int32)
            seed = np.uint32(evaluation.sample_seed)
            rows = (indices,) if labels is None else (indices, labels[indices % len(labels)])
            if self._split is not None:
                rows = jax.device_put(rows, self._split)
            images, seen = jax.device_get(program(params, levels, seed, *rows))
            count = min(self.batch_size, stop - first)
            yield Drawn(images[:count], seen[:count])

    def _levels(self, evaluation: Evaluation) -> tuple[Grid, dict[str, Any]]:
        """The noise levels that the evaluation visits, and its sampler's options."""
        steps, options = evaluation.sampling_steps, evaluation.sampler_options
        found = plan(self._objective, self._diffusion, sampler_of(evaluation), steps, options, evaluation.cfg_interval)
        return grid(found, length=self._diffusion.timesteps), found.options

    def _program(
        self, evaluation: Evaluation, options: dict[str, Any], labelled: bool, weak: Weak | None
    ) -> Callable[..., tuple[Array, Array]]:
        e, model = evaluation, self._model
        kind = (e.sampler, e.sampler_source, e.sampler_options, e.cfg_scale, e.cfg_channels, e.cfg_interval is None)
        kind = (*kind, e.precision, labelled, weak and weak.model)
        shape = (model.input_size, model.input_size, model.in_channels)
        objective = Objective(self._objective, self._diffusion)
        step = functools.partial(load(sampler_of(evaluation).step), **options)
        apply = self._applied(evaluation.precision, model, self._apply)
        weakly = None if weak is None else self._applied(evaluation.precision, weak.model, weak.apply)

        def program(params, levels, seed, indices, given=None):
            keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(jax.random.key(seed), index)))(indices)
            labels = given
            if labels is None:
                labels = jax.vmap(lambda key: jax.random.randint(key, (), 0, model.num_classes))(keys[:, 1])

            def unguided(x, t, y):
                return apply(params[0], x, t, y)

            steered: Model = unguided
            scale, channels = evaluation.cfg_scale, evaluation.cfg_channels
            if scale != 1.0 and weakly is not None:
                steered = away_from(unguided, functools.partial(weakly, params[1]), scale, channels)
            elif scale != 1.0:
                steered = guided(unguided, scale, model.num_classes, channels)

            def denoise(x: Array, level: Level) -> Denoised:
                def within(x: Array, t: Array, y: Array) -> Array:  # outside, the other model is not called at all
                    return jax.lax.cond(level.guided, steered, unguided, x, t, y)

                used = steered if evaluation.cfg_interval is None else within
                return objective.read(objective.raw(used, x, labels, level), x, level)

            images = sample(step, denoise, levels, keys[:, 0], shape)
            return images, labels.astype(jnp.int32)

        return self._programs.setdefault(kind, jax.jit(program))

    def _applied(self, precision: Precision, model: ModelConfig, apply: Apply) -> Apply:
        """The model in a precision; refused on devices that do not have it."""
        if precision == "float32":
            return apply
        device = jax.local_devices()[0]
        require_precision(precision, device)
        return applied(model, compute_on(device, precision, model), device.platform)
