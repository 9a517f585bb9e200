"""Layers of a diffusion transformer: embeddings, attention, MLP, normalisation.

Letters in shapes: B batch, T tokens, M memory tokens, D width, H heads, K head dimension, C channels. Initialisation is ViT's as the
DiT release uses it: Xavier-uniform weights and zero biases, N(0, 0.02) for the embedding tables and the timestep MLP.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dit.flops import FREQUENCIES

EMBEDDING_INIT = nnx.initializers.normal(0.02)
ZEROS = nnx.initializers.zeros_init()


def linear(d_in: int, d_out: int, rngs: nnx.Rngs, kernel_init=None) -> nnx.Linear:
    """A dense layer with bias: Xavier-uniform weight unless told otherwise, zero bias."""
    return nnx.Linear(d_in, d_out, kernel_init=kernel_init or nnx.initializers.xavier_uniform(), rngs=rngs)


def layer_norm(d: int, rngs: nnx.Rngs, affine: bool) -> nnx.LayerNorm:
    """LayerNorm with eps 1e-6 and the two-pass variance; `affine` adds scale and shift."""
    return nnx.LayerNorm(d, epsilon=1e-6, use_scale=affine, use_bias=affine, use_fast_variance=False, rngs=rngs)


def dense(layer: nnx.Linear, x: Float[Array, "*batch D_in"]) -> Float[Array, "*batch D_out"]:
    """Apply `layer` to the last axis with all others flattened into one.

    With one leading axis the weight gradient is a plain matrix product; with two, XLA on a CPU first writes a transposed copy of
    the incoming gradient, which cost a fifth of a training step where it was measured.
    """
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], layer.out_features)


def timestep_features(t: Float[Array, " B"], width: int = FREQUENCIES) -> Float[Array, "B F"]:
    """Sinusoidal features of a raw timestep, cosines first: [cos(t·w_i), sin(t·w_i)], w_i = 10000^(-i/half).

    The exponents are rounded to float32 before the exponential, as in the release: at t = 999 the last bit of a frequency moves
    the model's output in the fifth digit.
    """
    half = width // 2
    exponents = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = jnp.asarray(np.exp(exponents.astype(np.float64)), jnp.float32)
    angles = t[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def position_embedding(width: int, grid: int) -> np.ndarray:
    """Frozen 2-D sine-cosine embedding, (grid², width) float32, tokens row-major.

    The first half of the channels encodes the column, the second half the row; each half is [sin, cos] of position · w_i with
    w_i = 10000^(-i/(width/4)), computed in float64.
    """
    quarter = width // 4
    frequencies = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
    rows, cols = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    halves = []
    for positions in (cols, rows):
        angles = positions.reshape(-1, 1) * frequencies
        halves += [np.sin(angles), np.cos(angles)]
    return np.concatenate(halves, axis=1).astype(np.float32)


class TimestepEmbedding(nnx.Module):
    """Sinusoidal features through a two-layer SiLU MLP, weights N(0, 0.02)."""

    def __init__(self, d: int, rngs: nnx.Rngs):
        self.fc1 = linear(FREQUENCIES, d, rngs, EMBEDDING_INIT)
        self.fc2 = linear(d, d, rngs, EMBEDDING_INIT)

    def __call__(self, t: Float[Array, " B"]) -> Float[Array, "B D"]:
        return self.fc2(nnx.silu(self.fc1(timestep_features(t))))


class LabelEmbedding(nnx.Module):
    """Table of class embeddings, N(0, 0.02); with label dropout a further row, index `num_classes`, is the null label."""

    def __init__(self, num_classes: int, dropout: float, d: int, rngs: nnx.Rngs):
        self.table = nnx.Embed(num_classes + (dropout > 0), d, embedding_init=EMBEDDING_INIT, rngs=rngs)

    def __call__(self, y: Int[Array, " B"]) -> Float[Array, "B D"]:
        return self.table(y)


def attend(
    q: Float[Array, "B T H K"], k: Float[Array, "B S H K"], v: Float[Array, "B S H K"]
) -> Float[Array, "B T H K"]:
    """softmax(q·kᵀ/√K)·v for each head.

    On a CPU the heads are moved beside the batch first, so that both products are plain batches of matrices: XLA otherwise transposes
    the logits in the backward pass, which made 256 tokens of narrow heads take twice as long.
    """
    if jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(q, k, v)
    b, t, h, width = q.shape
    q, k, v = (x.transpose(0, 2, 1, 3).reshape(b * h, x.shape[1], width) for x in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("ntk,nsk->nts", q * width**-0.5, k), axis=-1)
    return jnp.einsum("nts,nsk->ntk", weights, v).reshape(b, h, t, width).transpose(0, 2, 1, 3)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused qkv projection (its Xavier limit is sqrt(6/4D)) and an output projection."""

    def __init__(self, d: int, num_heads: int, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.qkv = linear(d, 3 * d, rngs)
        self.proj = linear(d, d, rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        b, t, d = x.shape
        qkv = dense(self.qkv, x).reshape(b, t, 3, self.num_heads, d // self.num_heads)
        out = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return dense(self.proj, out.reshape(b, t, d))


class CrossAttention(nnx.Module):
    """Multi-head attention of the tokens to a short memory, with separate q, k, v and output projections."""

    def __init__(self, d: int, num_heads: int, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.q = linear(d, d, rngs)
        self.k = linear(d, d, rngs)
        self.v = linear(d, d, rngs)
        self.proj = linear(d, d, rngs)

    def __call__(self, x: Float[Array, "B T D"], memory: Float[Array, "B M D"]) -> Float[Array, "B T D"]:
        d = x.shape[-1]
        q, k, v = (
            dense(layer, y).reshape(*y.shape[:2], self.num_heads, d // self.num_heads)
            for layer, y in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        return dense(self.proj, attend(q, k, v).reshape(x.shape))


class Mlp(nnx.Module):
    """D → hidden → D with the tanh-approximated GELU."""

    def __init__(self, d: int, hidden: int, rngs: nnx.Rngs):
        self.fc1 = linear(d, hidden, rngs)
        self.fc2 = linear(hidden, d, rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return dense(self.fc2, nnx.gelu(dense(self.fc1, x), approximate=True))


def modulate(x: Float[Array, "B T D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]) -> Float[Array, "B T D"]:
    """x · (1 + scale) + shift, the same for every token of an image."""
    return x * (1 + scale[:, None, :]) + shift[:, None, :]
