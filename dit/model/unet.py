"""The U-Nets that diffusion transformers are compared with (see `dit.design.unet`): encoder, middle, decoder on concatenated skips.

Images are NHWC. Every stage is a res block with the attention behind it, or the step between two levels; the encoder's outputs are handed
to the decoder, last first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dit.design.unet import UNetConfig
from dit.model.compute import Compute
from dit.model.layers import timestep_features
from dit.model.unet_blocks import (
    ZEROS,
    Resample,
    Resampling,
    ResBlock,
    SelfAttention,
    SpatialTransformer,
    conv,
    group_norm,
    linear,
    normalize,
)

Images = Float[Array, "B I I C"]


class ClassEmbedding(nnx.Module):
    """Table of class embeddings, N(0, 1) as the originals'; with label dropout a further row, index `num_classes`, is the null class."""

    def __init__(self, rows: int, d: int, rngs: nnx.Rngs):
        self.table = nnx.Embed(rows, d, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)

    def __call__(self, y: Int[Array, " B"]) -> Float[Array, "B D"]:
        return self.table(y).astype(self.table.embedding.dtype)  # the layer itself answers in float32


class Stage(nnx.Module):
    """What is between two of the encoder's outputs, or two of the decoder's inputs: some of res block, attention, step to a neighbour."""

    def __init__(self, **parts: nnx.Module | None):
        self.names = tuple(name for name, part in parts.items() if part is not None)
        for name in self.names:
            setattr(self, name, parts[name])

    def __call__(self, x: Array, e: Array, context: Array | None) -> Array:
        for name in self.names:
            x = getattr(self, name)(x, e, context)
        return x


class UNet(nnx.Module):
    """Predicts the noise, and with `learn_sigma` the variance, of a noised image; `compute` says how.

    In bfloat16 it is called with parameters that `dit.model.compute.cast_params` has cast.
    """

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs, compute: Compute = Compute()):  # noqa: B008
        self.config, self.compute = config, compute
        width = config.width
        self.fc1, self.fc2 = linear(width, 4 * width, rngs), linear(4 * width, 4 * width, rngs)
        self.label_embedding = ClassEmbedding(
            config.class_rows, 4 * width if config.kind == "adm" else config.context, rngs
        )
        self.entry = conv(config.seen_channels, config.channels[0], rngs)
        encoder, skipped = self._encoder(rngs)
        self.encoder = nnx.List(encoder)
        c, attention = config.channels[-1], self._attention(config.channels[-1], rngs)
        self.middle = Stage(res=ResBlock(config, c, c, rngs), attention=attention, res2=ResBlock(config, c, c, rngs))
        self.decoder = nnx.List(self._decoder(skipped, rngs))
        self.norm = group_norm(config, config.channels[0], rngs)
        self.exit = conv(config.channels[0], config.out_channels, rngs, ZEROS)

    def _encoder(self, rngs: nnx.Rngs) -> tuple[list[Stage], list[int]]:
        """The stages on the way down, and the channels of every map that is kept."""
        config = self.config
        c, stages, kept = config.channels[0], [], [config.channels[0]]
        for level, (size, c_out) in enumerate(zip(config.resolutions, config.channels)):
            for _ in range(config.res_blocks):
                stages.append(self._stage(c, c_out, size, rngs))
                kept.append(c := c_out)
            if level < len(config.channels) - 1:
                stages.append(Stage(step=self._step(c, rngs, "down")))
                kept.append(c)
        return stages, kept

    def _decoder(self, kept: list[int], rngs: nnx.Rngs) -> list[Stage]:
        """The stages on the way up, one for every kept map."""
        config = self.config
        c, stages = config.channels[-1], []
        for level in reversed(range(len(config.channels))):
            for block in range(config.res_blocks + 1):
                steps = level > 0 and block == config.res_blocks
                c_out = config.channels[level]
                step = self._step(c_out, rngs, "up") if steps else None
                stages.append(self._stage(c + kept.pop(), c_out, config.resolutions[level], rngs, step))
                c = c_out
        return stages

    def _stage(self, c_in: int, c_out: int, size: int, rngs: nnx.Rngs, step: nnx.Module | None = None) -> Stage:
        attention = self._attention(c_out, rngs) if size in self.config.attention else None
        return Stage(res=ResBlock(self.config, c_in, c_out, rngs), attention=attention, step=step)

    def _attention(self, c: int, rngs: nnx.Rngs) -> nnx.Module:
        kind = SelfAttention if self.config.kind == "adm" else SpatialTransformer
        return kind(self.config, c, rngs, self.compute)

    def _step(self, c: int, rngs: nnx.Rngs, resample: Resample) -> nnx.Module:
        if self.config.kind == "adm":
            return ResBlock(self.config, c, c, rngs, resample)
        return Resampling(c, rngs, resample)

    def __call__(
        self, x: Images, t: Float[Array, " B"], y: Int[Array, " B"], low_res: Float[Array, "B L L C"] | None = None
    ) -> Float[Array, "B I I O"]:
        """Predict from noised images, their timesteps and their labels.

        Args:
            x: noised images or latents, (B, input_size, input_size, in_channels).
            t: original timesteps 0 ... 999, as floats.
            y: labels; `num_classes` is the null label where the model has one.
            low_res: an upsampler's image of `low_res_size`, enlarged bilinearly and put beside x.

        Returns:
            (B, input_size, input_size, out_channels), float32: noise first, then the variance's interpolation weight.
        """
        config, dtype = self.config, self.compute.dtype
        if low_res is not None:
            x = jnp.concatenate([x, jax.image.resize(low_res, x.shape, "bilinear")], axis=-1)
        h = self.compute.split(self.entry(x.astype(dtype)))
        e = self.fc2(nnx.silu(self.fc1(timestep_features(t, config.width).astype(dtype))))
        label, context = self.label_embedding(y), None
        if config.kind == "adm":
            e = e + label
        else:
            context = label[:, None, :]
        kept = [h]
        for stage in self.encoder:
            h = self._run(stage, h, e, context)
            kept.append(h)
        h = self._run(self.middle, h, e, context)
        for stage in self.decoder:
            h = self._run(stage, jnp.concatenate([h, kept.pop()], axis=-1), e, context)
        return self.exit(nnx.silu(normalize(self.norm, h))).astype(jnp.float32)

    def _run(self, stage: Stage, x: Array, e: Array, context: Array | None) -> Array:
        """A stage, of which the backward pass computes again what `compute.remat` says."""
        if self.compute.remat == "none":
            return self.compute.split(stage(x, e, context))
        graph, params = nnx.split(stage)
        policy = _products if self.compute.remat == "dots" else None
        again: Callable[..., Array] = jax.checkpoint(
            lambda params, *inputs: nnx.merge(graph, params)(*inputs), policy=policy
        )
        return self.compute.split(again(params, x, e, context))


def _products(primitive: Any, *inputs: Any, **parameters: Any) -> bool:
    """Whether a result is of a product with weights: these are kept under "dots"."""
    if primitive.name == "conv_general_dilated":
        return True
    return bool(jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *inputs, **parameters))
