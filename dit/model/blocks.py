"""The four transformer blocks of the paper's design space (Sec. 3.2, Fig. 3) and their two decoders.

Every block is called `block(x, condition)`. The condition is the sum of the timestep and label embeddings (B, D) for the two adaLN
blocks, and the two embeddings as a length-2 memory (B, 2, D) for the other two; the in-context block finds them among its tokens
and ignores the argument. Where the paper leaves a choice open, it is made here:
- adaLN keeps ViT's initialisation (Xavier) for its modulation, in the (1 + scale) form, without gates;
- in-context and cross-attention blocks have LayerNorms with scale and shift, as a ViT has; cross-attention has its own LayerNorm;
  the memory is not normalised; no projection is zeroed; the final LayerNorm is not adaptive (the published parameters fix that).
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dit.design.blocks import block_of
from dit.design.config import ModelConfig
from dit.design.parts import load
from dit.model.compute import Compute
from dit.model.layers import (
    ONE_DEVICE,
    ZEROS,
    Attention,
    CrossAttention,
    Mlp,
    dense,
    layer_norm,
    linear,
    modulate,
    normalize,
)

Tokens = Float[Array, "B T D"]


class AdaLNZeroBlock(nnx.Module):
    """Shift, scale and gate of both branches are regressed from the condition, from zero: the identity at initialisation."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute):
        d = config.hidden_size
        self.norm1 = layer_norm(d, rngs, affine=False)
        self.attention = Attention(d, config.num_heads, rngs, compute, config.qk_norm)
        self.norm2 = layer_norm(d, rngs, affine=False)
        self.mlp = Mlp(d, config.mlp_hidden_size, rngs, compute)
        self.modulation = linear(d, 6 * d, rngs, ZEROS)

    def __call__(self, x: Tokens, condition: Float[Array, "B D"]) -> Tokens:
        regressed = self.modulation(nnx.silu(condition))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(regressed, 6, axis=-1)
        x = x + gate1[:, None, :] * self.attention(modulate(normalize(self.norm1, x), shift1, scale1))
        return x + gate2[:, None, :] * self.mlp(modulate(normalize(self.norm2, x), shift2, scale2))


class AdaLNBlock(nnx.Module):
    """Shift and scale of both LayerNorms are regressed from the condition; plain residuals."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute):
        d = config.hidden_size
        self.norm1 = layer_norm(d, rngs, affine=False)
        self.attention = Attention(d, config.num_heads, rngs, compute, config.qk_norm)
        self.norm2 = layer_norm(d, rngs, affine=False)
        self.mlp = Mlp(d, config.mlp_hidden_size, rngs, compute)
        self.modulation = linear(d, 4 * d, rngs)

    def __call__(self, x: Tokens, condition: Float[Array, "B D"]) -> Tokens:
        shift1, scale1, shift2, scale2 = jnp.split(self.modulation(nnx.silu(condition)), 4, axis=-1)
        x = x + self.attention(modulate(normalize(self.norm1, x), shift1, scale1))
        return x + self.mlp(modulate(normalize(self.norm2, x), shift2, scale2))


class CrossAttentionBlock(nnx.Module):
    """Self-attention, then attention to the two condition tokens, then the MLP, each behind its LayerNorm."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute):
        d = config.hidden_size
        self.norm1 = layer_norm(d, rngs, affine=True)
        self.attention = Attention(d, config.num_heads, rngs, compute, config.qk_norm)
        self.norm_cross = layer_norm(d, rngs, affine=True)
        self.cross_attention = CrossAttention(d, config.num_heads, rngs, compute, config.qk_norm)
        self.norm2 = layer_norm(d, rngs, affine=True)
        self.mlp = Mlp(d, config.mlp_hidden_size, rngs, compute)

    def __call__(self, x: Tokens, condition: Float[Array, "B M D"]) -> Tokens:
        x = x + self.attention(normalize(self.norm1, x))
        x = x + self.cross_attention(normalize(self.norm_cross, x), condition)
        return x + self.mlp(normalize(self.norm2, x))


class InContextBlock(nnx.Module):
    """A plain pre-LN ViT block; the condition is among the tokens."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute):
        d = config.hidden_size
        self.norm1 = layer_norm(d, rngs, affine=True)
        self.attention = Attention(d, config.num_heads, rngs, compute, config.qk_norm)
        self.norm2 = layer_norm(d, rngs, affine=True)
        self.mlp = Mlp(d, config.mlp_hidden_size, rngs, compute)

    def __call__(self, x: Tokens, condition: Float[Array, "B M D"]) -> Tokens:
        x = x + self.attention(normalize(self.norm1, x))
        return x + self.mlp(normalize(self.norm2, x))


class AdaptiveFinalLayer(nnx.Module):
    """Modulated LayerNorm, then a linear decoder that starts at zero. `zero` starts the modulation at zero too."""

    def __init__(self, d: int, out: int, rngs: nnx.Rngs, zero: bool):
        self.norm = layer_norm(d, rngs, affine=False)
        self.modulation = linear(d, 2 * d, rngs, ZEROS if zero else None)
        self.linear = linear(d, out, rngs, ZEROS, ("fsdp", None))

    def __call__(self, x: Tokens, condition: Float[Array, "B D"]) -> Float[Array, "B T O"]:
        shift, scale = jnp.split(self.modulation(nnx.silu(condition)), 2, axis=-1)
        return dense(self.linear, modulate(normalize(self.norm, x), shift, scale))


class PlainFinalLayer(nnx.Module):
    """LayerNorm with scale and shift, then a linear decoder that starts at zero."""

    def __init__(self, d: int, out: int, rngs: nnx.Rngs):
        self.norm = layer_norm(d, rngs, affine=True)
        self.linear = linear(d, out, rngs, ZEROS, ("fsdp", None))

    def __call__(self, x: Tokens, condition: Float[Array, "B M D"]) -> Float[Array, "B T O"]:
        return dense(self.linear, normalize(self.norm, x))


def make_block(config: ModelConfig, rngs: nnx.Rngs, compute: Compute = ONE_DEVICE) -> nnx.Module:
    """One block of the configured kind, to be computed as `compute` says."""
    return load(block_of(config).make)(config, rngs, compute)


def make_final_layer(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
    """The decoder that goes with the configured block: adaptive or plain."""
    d, out, final = config.hidden_size, config.patch_size**2 * config.out_channels, block_of(config).final
    if final == "plain":
        return PlainFinalLayer(d, out, rngs)
    return AdaptiveFinalLayer(d, out, rngs, zero=final == "zero")
