"""Drawing images from a trained model: compiled once per batch shape, whatever the number of sampling steps.

Image `i` of a sampling seed has its own key; its label and all of its noise come from there. So an image does not change with the
batch it is drawn in, and two models given the same seed start from the same noise and labels. Labels may be given instead. A batch is
split over this process's devices. The whole chain is one compiled loop, guided images and their null halves one batch in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, PyTree

from dit.design.config import DiffusionConfig, Evaluation, Model, Precision
from dit.diffusion.process import Model as Denoiser
from dit.diffusion.process import guided, linear_schedule, respace, respaced_timesteps, sample, tables
from dit.model.compute import compute_on, require_precision
from dit.model.mesh import here
from dit.model.transformer import applied


class Drawn(NamedTuple):
    """Images in the model's range (or latents), NHWC, and their labels."""

    images: Float32[np.ndarray, "B I I C"]
    labels: Int32[np.ndarray, " B"]


class Sampler:
    """Draws from one model. Programs are kept per (sampler, guidance, precision), so several respacings compile once.

    Args:
        apply: `(params, x, t, y) -> output` in float32, as `applied` gives it; an evaluation in bfloat16 makes its own.
        batch_size: images per dispatch, rounded up to a multiple of the devices; the last batch is filled up, so that it compiles once.
    """

    def __init__(
        self,
        apply: Callable[[PyTree, Array, Array, Array], Array],
        model: Model,
        diffusion: DiffusionConfig,
        batch_size: int,
    ):
        devices = jax.local_devices()
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        self._apply, self._model, self._diffusion = apply, model, diffusion
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
    ) -> Iterator[Drawn]:
        """Images `start` to `stop` of the evaluation's sampling seed, a batch at a time, in order.

        Image `i` has label `labels[i % len(labels)]` where labels are given, else its own random one.
        """
        schedule = linear_schedule(self._diffusion)
        kept = respaced_timesteps(self._diffusion.timesteps, evaluation.sampling_steps, evaluation.sampler)
        table = tables(respace(schedule, kept), length=self._diffusion.timesteps)
        program = self._program(evaluation, labels is not None)
        params = here(params)
        if self._whole is not None:
            params, table = jax.device_put((params, table), self._whole)
        for first in range(start, stop, self.batch_size):
            indices = first + np.arange(self.batch_size, dtype=np.int32)
            num_steps, seed = np.int32(len(kept)), np.uint32(evaluation.sample_seed)
            rows = (indices,) if labels is None else (indices, labels[indices % len(labels)])
            if self._split is not None:
                rows = jax.device_put(rows, self._split)
            images, seen = jax.device_get(program(params, table, num_steps, seed, *rows))
            count = min(self.batch_size, stop - first)
            yield Drawn(images[:count], seen[:count])

    def _program(self, evaluation: Evaluation, labelled: bool) -> Callable[..., tuple[Array, Array]]:
        model, kind = (
            self._model,
            (evaluation.sampler, evaluation.cfg_scale, evaluation.cfg_channels, evaluation.precision, labelled),
        )
        shape = (model.input_size, model.input_size, model.in_channels)
        apply = self._applied(evaluation.precision)

        def program(params, table, num_steps, seed, indices, given=None):
            keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(jax.random.key(seed), index)))(indices)
            labels = given
            if labels is None:
                labels = jax.vmap(lambda key: jax.random.randint(key, (), 0, model.num_classes))(keys[:, 1])

            def unguided(x, t, y):
                return apply(params, x, t, y)

            denoise: Denoiser = unguided
            if evaluation.cfg_scale != 1.0:
                denoise = guided(unguided, evaluation.cfg_scale, model.num_classes, evaluation.cfg_channels)
            images = sample(denoise, table, num_steps, keys[:, 0], labels, shape, evaluation.sampler)
            return images, labels.astype(jnp.int32)

        return self._programs.setdefault(kind, jax.jit(program))

    def _applied(self, precision: Precision) -> Callable[[PyTree, Array, Array, Array], Array]:
        """The model in a precision; refused on devices that do not have it."""
        if precision == "float32":
            return self._apply
        device = jax.local_devices()[0]
        require_precision(precision, device)
        return applied(self._model, compute_on(device, precision, self._model), device.platform)
