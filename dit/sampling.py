"""Drawing images from a trained model: compiled once per batch shape, whatever the number of sampling steps.

Image `i` of a sampling seed has its own key; its label and all of its noise come from there. So an image does not change with the
batch it is drawn in, and two models given the same seed start from the same noise and labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, PyTree

from dit.config import DiffusionConfig, Evaluation, ModelConfig
from dit.diffusion import guided, linear_schedule, respace, respaced_timesteps, sample, tables


class Drawn(NamedTuple):
    """Images in the model's range (or latents), NHWC, and their labels."""

    images: Float32[np.ndarray, "B I I C"]
    labels: Int32[np.ndarray, " B"]


class Sampler:
    """Draws from one model. Programs are kept per (sampler, guidance), so several respacings compile once.

    Args:
        apply: `(params, x, t, y) -> output`, as `dit.train.build` gives it.
        batch_size: images per dispatch; the last batch is filled up, so that it compiles once.
    """

    def __init__(
        self,
        apply: Callable[[PyTree, Array, Array, Array], Array],
        model: ModelConfig,
        diffusion: DiffusionConfig,
        batch_size: int,
    ):
        self._apply, self._model, self._diffusion, self.batch_size = apply, model, diffusion, batch_size
        self._programs: dict[tuple, Callable[..., tuple[Array, Array]]] = {}

    def draw(self, params: PyTree, evaluation: Evaluation, start: int, stop: int) -> Iterator[Drawn]:
        """Images `start` to `stop` of the evaluation's sampling seed, a batch at a time, in order."""
        schedule = linear_schedule(self._diffusion)
        kept = respaced_timesteps(self._diffusion.timesteps, evaluation.sampling_steps, evaluation.sampler)
        table = tables(respace(schedule, kept), length=self._diffusion.timesteps)
        program = self._program(evaluation)
        for first in range(start, stop, self.batch_size):
            indices = first + np.arange(self.batch_size, dtype=np.int32)
            num_steps, seed = np.int32(len(kept)), np.uint32(evaluation.sample_seed)
            images, labels = jax.device_get(program(params, table, num_steps, seed, indices))
            count = min(self.batch_size, stop - first)
            yield Drawn(images[:count], labels[:count])

    def _program(self, evaluation: Evaluation) -> Callable[..., tuple[Array, Array]]:
        model, kind = self._model, (evaluation.sampler, evaluation.cfg_scale, evaluation.cfg_channels)
        shape = (model.input_size, model.input_size, model.in_channels)

        def program(params, table, num_steps, seed, indices):
            keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(jax.random.key(seed), index)))(indices)
            labels = jax.vmap(lambda key: jax.random.randint(key, (), 0, model.num_classes))(keys[:, 1])

            def denoise(x, t, y):
                return self._apply(params, x, t, y)

            if evaluation.cfg_scale != 1.0:
                denoise = guided(denoise, evaluation.cfg_scale, model.num_classes, evaluation.cfg_channels)
            images = sample(denoise, table, num_steps, keys[:, 0], labels, shape, evaluation.sampler)
            return images, labels.astype(jnp.int32)

        return self._programs.setdefault(kind, jax.jit(program))
