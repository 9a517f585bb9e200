"""The diffusion transformer (Sec. 3.2 of the paper): patchify, blocks scanned over depth, decode.

Images are NHWC. Parameters of all blocks are stacked on a leading depth axis and the blocks run in one `lax.scan`, so that 28 layers
compile about as fast as 12.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, assert_never

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from dit.design.blocks import block_of
from dit.design.config import Model, ModelConfig
from dit.design.unet import UNetConfig
from dit.model.blocks import make_block, make_final_layer
from dit.model.compute import ATTENDED, Compute, cast_params
from dit.model.layers import ONE_DEVICE, LabelEmbedding, TimestepEmbedding, dense, linear, position_embedding
from dit.model.unet import UNet

Images = Float[Array, "B I I C"]


def patchify(x: Images, patch_size: int) -> Float[Array, "B T F"]:
    """Cut (B, I, I, C) into row-major tokens of p·p·C values each, laid out (row, column, channel)."""
    b, size, _, c = x.shape
    grid = size // patch_size
    x = x.reshape(b, grid, patch_size, grid, patch_size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, grid * grid, patch_size * patch_size * c)


def unpatchify(tokens: Float[Array, "B T F"], patch_size: int) -> Images:
    """The inverse of `patchify`."""
    b, t, f = tokens.shape
    grid = round(t**0.5)
    c = f // patch_size**2
    x = tokens.reshape(b, grid, grid, patch_size, patch_size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, grid * patch_size, grid * patch_size, c)


class DiT(nnx.Module):
    """Predicts the noise, and with `learn_sigma` the variance, of a noised image; `compute` says how.

    In bfloat16 it is called with parameters that `dit.model.compute.cast_params` has cast.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, compute: Compute = ONE_DEVICE):
        self.config, self.compute = config, compute
        d = config.hidden_size
        self.patch_embedding = linear(config.patch_size**2 * config.in_channels, d, rngs, axes=(None, "fsdp"))
        self.timestep_embedding = TimestepEmbedding(d, rngs)
        self.label_embedding = LabelEmbedding(config.num_classes, config.class_dropout_prob, d, rngs)

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> Any:
            return make_block(config, rngs, compute)

        self.blocks = stack(rngs)
        self.final_layer = make_final_layer(config, rngs)

    def __call__(self, x: Images, t: Float[Array, " B"], y: Int[Array, " B"]) -> Float[Array, "B I I O"]:
        """Predict from noised images, their timesteps and their labels.

        Args:
            x: noised images or latents, (B, input_size, input_size, in_channels).
            t: original timesteps 0 ... 999, as floats.
            y: labels; `num_classes` is the null label.

        Returns:
            (B, input_size, input_size, out_channels), float32: noise first, then the variance's interpolation weight.
        """
        config, dtype = self.config, self.compute.dtype
        positions = position_embedding(config.hidden_size, config.input_size // config.patch_size)
        patches = patchify(x.astype(dtype), config.patch_size)
        tokens = dense(self.patch_embedding, patches) + jnp.asarray(positions, dtype)[None]
        embedded = self.timestep_embedding(t), self.label_embedding(y)
        where = block_of(config).condition
        condition = embedded[0] + embedded[1] if where == "sum" else jnp.stack(embedded, axis=1)
        if where == "tokens":  # they carry no position embedding and are dropped after the last block
            tokens = jnp.concatenate([tokens, condition], axis=1)
        tokens = scanned(*nnx.split(self.blocks), tokens, condition, self.compute)[:, : config.tokens]
        return unpatchify(self.final_layer(tokens, condition).astype(jnp.float32), config.patch_size)


def scanned(
    graph: Any, stacked: PyTree, tokens: Float[Array, "B S D"], condition: Float[Array, "B ..."], compute: Compute
) -> Float[Array, "B S D"]:
    """The blocks of one `graph` with parameters stacked along depth, one after another."""
    condition = compute.split(condition)

    def body(x, params):
        return compute.split(nnx.merge(graph, params)(x, condition)), None

    return jax.lax.scan(_recomputed(body, compute), compute.split(tokens), stacked, unroll=compute.unroll)[0]


def _recomputed(body: Callable, compute: Compute) -> Callable:
    """The scan's body, keeping for the backward pass only what `compute.remat` says."""
    match compute.remat:
        case "none":
            return body
        case "dots":
            # Products with weights have no batch dimensions; the attention's two have, and are computed again, but for named ones.
            policies = jax.checkpoint_policies
            kept = policies.save_from_both_policies(
                policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(ATTENDED)
            )
            return jax.checkpoint(body, policy=kept, prevent_cse=False)
        case "full":
            return jax.checkpoint(body, prevent_cse=False)
        case _:
            assert_never(compute.remat)


def network(config: Model, *, rngs: nnx.Rngs, compute: Compute = ONE_DEVICE) -> DiT | UNet:
    """A model of whichever family, with its first parameters."""
    if isinstance(config, UNetConfig):
        return UNet(config, rngs=rngs, compute=compute)
    return DiT(config, rngs=rngs, compute=compute)


def applied(config: Model, compute: Compute, platform: str) -> Callable[[PyTree, Array, Array, Array], Array]:
    """The model as a function `(params, x, t, y) -> output` of float32 parameters, in either precision.

    In float32 its products are truly float32 everywhere: a TPU would otherwise round their factors to bfloat16, a GPU to TF32.
    """
    graph, _ = nnx.split(nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0), compute=compute)))
    exact = "highest" if compute.precision == "float32" and platform != "cpu" else None

    def model(params: PyTree, x: Array, t: Array, y: Array) -> Array:
        with jax.default_matmul_precision(exact) if exact else contextlib.nullcontext():
            return nnx.merge(graph, cast_params(params, compute.dtype))(x, t, y)

    return model
