"""Blocks of the U-Nets of Dhariwal & Nichol (2021, ADM) and Rombach et al. (2022, latent diffusion).

Activations are NHWC. Letters in shapes: B batch, S side, C channels, E width of the embedding, T tokens, H heads, K head dimension, X
channels of the class embedding. Weights start as PyTorch's layers do, biases at zero; the last product of every branch starts at zero.
Statistics of normalisations are float32 in either precision.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dit.design.unet import UNetConfig
from dit.model.compute import Compute, attend
from dit.model.layers import PLACES, ZEROS, dense

Maps = Float[Array, "B S S C"]
Resample = Literal["down", "up"]

WEIGHTS = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within 1/sqrt(fan_in)."""
SPLIT = {PLACES: (None, "fsdp")}
"""Weights lie over `fsdp` along their output channels."""


def conv(c_in: int, c_out: int, rngs: nnx.Rngs, kernel_init=WEIGHTS, strides: int = 1) -> nnx.Conv:
    """A 3x3 convolution with bias and one pixel of zeros around."""
    return nnx.Conv(
        c_in, c_out, (3, 3), strides=strides, padding=1, kernel_init=kernel_init, rngs=rngs, kernel_metadata=SPLIT
    )


def linear(d_in: int, d_out: int, rngs: nnx.Rngs, kernel_init=WEIGHTS, bias: bool = True) -> nnx.Linear:
    """A dense layer, which is also a 1x1 convolution."""
    return nnx.Linear(d_in, d_out, use_bias=bias, kernel_init=kernel_init, rngs=rngs, kernel_metadata=SPLIT)


def group_norm(config: UNetConfig, c: int, rngs: nnx.Rngs, epsilon: float = 1e-5) -> nnx.GroupNorm:
    """GroupNorm with scale and shift."""
    return nnx.GroupNorm(c, config.groups, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def normalize(layer: nnx.GroupNorm | nnx.LayerNorm, x: Float[Array, "B *S C"]) -> Float[Array, "B *S C"]:
    """Apply a normalisation in float32 and return to the format of `x`."""
    return layer(x.astype(jnp.float32)).astype(x.dtype)


def resampled(x: Maps, how: Resample | None) -> Float[Array, "B R R C"]:
    """Half the side, by averaging squares of four pixels, or twice, by repeating each."""
    b, s, _, c = x.shape
    if how == "down":
        return x.reshape(b, s // 2, 2, s // 2, 2, c).mean((2, 4))
    return x.repeat(2, axis=1).repeat(2, axis=2) if how == "up" else x


class ResBlock(nnx.Module):
    """Two convolutions behind GroupNorm and SiLU, with the embedding between; `resample` changes the side before the first.

    "adm" regresses scale and shift of the second norm from the embedding, "ldm" adds it before that norm.
    """

    def __init__(self, config: UNetConfig, c_in: int, c_out: int, rngs: nnx.Rngs, resample: Resample | None = None):
        self.scales = config.kind == "adm"
        self.resample: Resample | None = resample
        self.norm1 = group_norm(config, c_in, rngs)
        self.conv1 = conv(c_in, c_out, rngs)
        self.embedding = linear(4 * config.width, (2 if self.scales else 1) * c_out, rngs)
        self.norm2 = group_norm(config, c_out, rngs)
        self.conv2 = conv(c_out, c_out, rngs, ZEROS)
        self.skip = linear(c_in, c_out, rngs) if c_in != c_out else None

    def __call__(self, x: Maps, e: Float[Array, "B E"], context: Float[Array, "B 1 X"] | None) -> Array:
        h = resampled(nnx.silu(normalize(self.norm1, x)), self.resample)
        x = resampled(x, self.resample)
        h = self.conv1(h)
        regressed = self.embedding(nnx.silu(e))[:, None, None, :]
        if self.scales:
            scale, shift = jnp.split(regressed, 2, axis=-1)
            h = normalize(self.norm2, h) * (1 + scale) + shift
        else:
            h = normalize(self.norm2, h + regressed)
        h = self.conv2(nnx.silu(h))
        return h + (x if self.skip is None else dense(self.skip, x))


class Resampling(nnx.Module):
    """Latent diffusion's way between levels: a strided convolution down, repeated pixels and a convolution up."""

    def __init__(self, c: int, rngs: nnx.Rngs, resample: Resample):
        self.resample = resample
        self.conv = conv(c, c, rngs, strides=2 if resample == "down" else 1)

    def __call__(self, x: Maps, e: Float[Array, "B E"], context: Float[Array, "B 1 X"] | None) -> Array:
        return self.conv(resampled(x, "up") if self.resample == "up" else x)


class SelfAttention(nnx.Module):
    """ADM's: GroupNorm, one projection to queries, keys and values, heads, a projection from zero, residual.

    The 3C channels are ordered (head, q/k/v, channel) where `legacy_heads`, else (q/k/v, head, channel).
    """

    def __init__(self, config: UNetConfig, c: int, rngs: nnx.Rngs, compute: Compute):
        self.heads, self.legacy, self.compute = config.heads(c), config.legacy_heads, compute
        self.norm = group_norm(config, c, rngs)
        self.qkv = linear(c, 3 * c, rngs)
        self.proj = linear(c, c, rngs, ZEROS)

    def __call__(self, x: Maps, e: Float[Array, "B E"], context: Float[Array, "B 1 X"] | None) -> Maps:
        b, s, _, c = x.shape
        qkv = dense(self.qkv, normalize(self.norm, x)).reshape(b, s * s, -1)
        if self.legacy:
            qkv = qkv.reshape(b, s * s, self.heads, 3, c // self.heads).swapaxes(2, 3)
        q, k, v = jnp.moveaxis(qkv.reshape(b, s * s, 3, self.heads, c // self.heads), 2, 0)
        return x + dense(self.proj, attend(self.compute.attention, q, k, v).reshape(x.shape))


class TokenAttention(nnx.Module):
    """Attention of the tokens to themselves or to a context, with separate projections, biased at the end alone."""

    def __init__(self, config: UNetConfig, c: int, d_context: int, rngs: nnx.Rngs, compute: Compute):
        self.heads, self.compute = config.heads(c), compute
        self.q = linear(c, c, rngs, bias=False)
        self.k = linear(d_context, c, rngs, bias=False)
        self.v = linear(d_context, c, rngs, bias=False)
        self.proj = linear(c, c, rngs)

    def __call__(self, x: Float[Array, "B T C"], context: Float[Array, "B M X"]) -> Float[Array, "B T C"]:
        q, k, v = (
            dense(layer, y).reshape(*y.shape[:2], self.heads, x.shape[-1] // self.heads)
            for layer, y in ((self.q, x), (self.k, context), (self.v, context))
        )
        # One key is too few for a fused kernel to be worth its constraints.
        kind = "xla" if self.compute.attention == "cudnn" and k.shape[1] == 1 else self.compute.attention
        return dense(self.proj, attend(kind, q, k, v).reshape(x.shape))


class SpatialTransformer(nnx.Module):
    """Latent diffusion's attention: self-attention, attention to the class embedding, and a gated MLP, between two 1x1 convolutions."""

    def __init__(self, config: UNetConfig, c: int, rngs: nnx.Rngs, compute: Compute):
        self.norm = group_norm(config, c, rngs, epsilon=1e-6)
        self.inward = linear(c, c, rngs)
        self.norm1 = nnx.LayerNorm(c, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.attention = TokenAttention(config, c, c, rngs, compute)
        self.norm_cross = nnx.LayerNorm(c, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.cross_attention = TokenAttention(config, c, config.context, rngs, compute)
        self.norm2 = nnx.LayerNorm(c, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.fc1 = linear(c, 8 * c, rngs)
        self.fc2 = linear(4 * c, c, rngs)
        self.outward = linear(c, c, rngs, ZEROS)

    def __call__(self, x: Maps, e: Float[Array, "B E"], context: Float[Array, "B 1 X"]) -> Maps:
        b, s, _, c = x.shape
        h = dense(self.inward, normalize(self.norm, x)).reshape(b, s * s, c)
        within = normalize(self.norm1, h)
        h = h + self.attention(within, within)
        h = h + self.cross_attention(normalize(self.norm_cross, h), context)
        values, gates = jnp.split(dense(self.fc1, normalize(self.norm2, h)), 2, axis=-1)
        h = h + dense(self.fc2, values * jax.nn.gelu(gates, approximate=False))
        return x + dense(self.outward, h).reshape(x.shape)
