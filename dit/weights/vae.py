"""Stable Diffusion's image autoencoder (diffusers' `AutoencoderKL`) in Flax NNX, for encoding and decoding only.

NHWC inside and out; images in [-1, 1]. The encoder gives a diagonal Gaussian over latents 8 times smaller than the image (one halving
per entry of `block_out_channels` after the first). Diffusion models see (latent - shift_factor) * scaling_factor; only `scaled` and
`unscaled` apply it. Attributes are named as diffusers names its tensors, so `dit.weights.vae_weights` needs no table of names.
Reference: Rombach et al. 2022, App. E; the published config.json of stabilityai/sd-vae-ft-mse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

# Std of the encoder's latents over ImageNet-like images is about 1/0.18215; diffusion is trained on latents of unit size.
LATENT_SCALE = 0.18215
"""The scaling factor of Stable Diffusion's autoencoders, and of any whose config.json does not give one."""

_EPSILON = 1e-6


@dataclass(frozen=True)
class VaeConfig:
    """The shape of an autoencoder; defaults are Stable Diffusion's (83,653,863 parameters)."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    down_attention: tuple[bool, ...] = (False, False, False, False)
    up_attention: tuple[bool, ...] = (False, False, False, False)
    mid_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    scaling_factor: float = LATENT_SCALE
    shift_factor: float = 0.0

    def scaled(self, latents: Any) -> Any:
        """Latents as a diffusion model sees them, out of the encoder's. NumPy or JAX, float32."""
        return (latents - np.float32(self.shift_factor) if self.shift_factor else latents) * np.float32(
            self.scaling_factor
        )

    def unscaled(self, latents: Any) -> Any:
        """The inverse of `scaled`."""
        latents = latents / np.float32(self.scaling_factor)
        return latents + np.float32(self.shift_factor) if self.shift_factor else latents

    @property
    def downsampling(self) -> int:
        """Pixels of the image per latent position, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


class _Layers:
    """Makes the convolutions, norms and projections of one model, all at one matmul precision."""

    def __init__(self, groups: int, precision: jax.lax.Precision | None, rngs: Any):
        self.conv: Callable[..., nnx.Conv] = partial(nnx.Conv, precision=precision, rngs=rngs)
        self.linear: Callable[..., nnx.Linear] = partial(nnx.Linear, precision=precision, rngs=rngs)
        # The "fast" variance E[x^2] - E[x]^2 loses the digits that parity at 1e-4 needs.
        norm = partial(nnx.GroupNorm, num_groups=groups, epsilon=_EPSILON, use_fast_variance=False, rngs=rngs)
        self.norm: Callable[..., nnx.GroupNorm] = norm
        self.precision = precision


class Resnet(nnx.Module):
    """Norm, SiLU, 3x3 convolution, twice; the shortcut is a 1x1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, layers: _Layers):
        self.norm1 = layers.norm(inputs)
        self.conv1 = layers.conv(inputs, outputs, (3, 3), padding=1)
        self.norm2 = layers.norm(outputs)
        self.conv2 = layers.conv(outputs, outputs, (3, 3), padding=1)
        self.conv_shortcut = layers.conv(inputs, outputs, (1, 1)) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nnx.Module):
    """One head over all positions, with a residual connection around norm and attention."""

    def __init__(self, width: int, layers: _Layers):
        self.group_norm = layers.norm(width)
        self.to_q = layers.linear(width, width)
        self.to_k = layers.linear(width, width)
        self.to_v = layers.linear(width, width)
        self.to_out = nnx.List([layers.linear(width, width)])
        self.precision = layers.precision

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        batch, height, width, channels = x.shape
        tokens = self.group_norm(x).reshape(batch, height * width, channels)
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        logits = jnp.einsum("bqd,bkd->bqk", q, k, precision=self.precision) * channels**-0.5
        mixed = jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(logits, axis=-1), v, precision=self.precision)
        return x + self.to_out[0](mixed).reshape(x.shape)


class Downsample(nnx.Module):
    """Halves each side; the one row and column of padding go to the bottom and the right."""

    def __init__(self, width: int, layers: _Layers):
        self.conv = layers.conv(width, width, (3, 3), strides=(2, 2), padding=((0, 1), (0, 1)))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles each side by repeating pixels, then smooths with a 3x3 convolution."""

    def __init__(self, width: int, layers: _Layers):
        self.conv = layers.conv(width, width, (3, 3), padding=1)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))


class Block(nnx.Module):
    """Resnets of one width, each followed by attention where the config says so, then at most one change of size."""

    def __init__(self, widths: tuple[int, int], depth: int, attention: bool, resize: str | None, layers: _Layers):
        inputs, outputs = widths
        self.resnets = nnx.List([Resnet(inputs if i == 0 else outputs, outputs, layers) for i in range(depth)])
        self.attentions = nnx.List([Attention(outputs, layers) for _ in range(depth if attention else 0)])
        self.downsamplers = nnx.List([Downsample(outputs, layers)] if resize == "down" else [])
        self.upsamplers = nnx.List([Upsample(outputs, layers)] if resize == "up" else [])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            if self.attentions:
                x = self.attentions[i](x)
        for resize in (*self.downsamplers, *self.upsamplers):
            x = resize(x)
        return x


class MidBlock(nnx.Module):
    """Resnet, attention, resnet at the smallest size."""

    def __init__(self, width: int, attention: bool, layers: _Layers):
        self.resnets = nnx.List([Resnet(width, width, layers) for _ in range(2)])
        self.attentions = nnx.List([Attention(width, layers)] if attention else [])

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Encoder(nnx.Module):
    """Image to the 2 * latent_channels numbers per position that parametrise the posterior."""

    def __init__(self, config: VaeConfig, layers: _Layers):
        widths = config.block_out_channels
        self.conv_in = layers.conv(config.in_channels, widths[0], (3, 3), padding=1)
        self.down_blocks = nnx.List()
        for i, width in enumerate(widths):
            resize = "down" if i < len(widths) - 1 else None
            pair = (widths[max(i - 1, 0)], width)
            self.down_blocks.append(Block(pair, config.layers_per_block, config.down_attention[i], resize, layers))
        self.mid_block = MidBlock(widths[-1], config.mid_attention, layers)
        self.conv_norm_out = layers.norm(widths[-1])
        self.conv_out = layers.conv(widths[-1], 2 * config.latent_channels, (3, 3), padding=1)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w Z"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latent to image; mirrors the encoder, with one more resnet per block."""

    def __init__(self, config: VaeConfig, layers: _Layers):
        widths = config.block_out_channels[::-1]
        self.conv_in = layers.conv(config.latent_channels, widths[0], (3, 3), padding=1)
        self.mid_block = MidBlock(widths[0], config.mid_attention, layers)
        self.up_blocks = nnx.List()
        for i, width in enumerate(widths):
            resize = "up" if i < len(widths) - 1 else None
            pair = (widths[max(i - 1, 0)], width)
            self.up_blocks.append(Block(pair, config.layers_per_block + 1, config.up_attention[i], resize, layers))
        self.conv_norm_out = layers.norm(widths[-1])
        self.conv_out = layers.conv(widths[-1], config.out_channels, (3, 3), padding=1)

    def __call__(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
    """The autoencoder. `precision` is for matrix products: full float32 by default, None for the device's faster own.

    `rngs` is an `nnx.Rngs`, or anything else whose `params()` gives a key.
    """

    def __init__(
        self,
        config: VaeConfig,
        *,
        precision: jax.lax.Precision | None = jax.lax.Precision.HIGHEST,
        rngs: Any,
    ):
        layers = _Layers(config.norm_num_groups, precision, rngs)
        latent = config.latent_channels
        self.config = config
        self.encoder = Encoder(config, layers)
        self.decoder = Decoder(config, layers)
        self.quant_conv = layers.conv(2 * latent, 2 * latent, (1, 1)) if config.quant_conv else None
        self.post_quant_conv = layers.conv(latent, latent, (1, 1)) if config.post_quant_conv else None

    def encode(self, images: Float[Array, "B H W C"]) -> tuple[Float[Array, "B h w Z"], Float[Array, "B h w Z"]]:
        """Mean and log-variance of the posterior, unscaled; the log-variance is clipped to [-30, 20] as the reference does."""
        moments = self.encoder(images)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        """Images, about in [-1, 1], from latents that are already unscaled."""
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)
