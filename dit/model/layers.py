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

from dit.design.flops import FREQUENCIES
from dit.model.compute import Compute, attend

Axes = tuple[str | tuple[str, ...] | None, ...]
ONE_DEVICE = Compute()
EMBEDDING_INIT = nnx.initializers.normal(0.02)
ZEROS = nnx.initializers.zeros_init()


PLACES = "axes"
"""Key of a parameter's metadata under which the mesh axis of each of its dimensions stands: see `dit.model.mesh`."""
COLUMNS: Axes = ("fsdp", "tensor")
ROWS: Axes = ("tensor", "fsdp")
# Over both axes along the inputs. qkv: a part of its 3D columns is not whole heads; `Attention` gathers the weights by heads. Modulation:
# its columns are cut apart at once, and XLA's partitioner then gets gradients wrong on three axes.
INPUTS: Axes = (("fsdp", "tensor"), None)


def linear(d_in: int, d_out: int, rngs: nnx.Rngs, kernel_init=None, axes: Axes = INPUTS) -> nnx.Linear:
    """A dense layer with bias: Xavier-uniform weight unless told otherwise, zero bias.

    Args:
        axes: the mesh axes of the weight's two dimensions. The bias goes with the outputs where those are split over `tensor`.
    """
    init = kernel_init or nnx.initializers.xavier_uniform()
    bias = "tensor" if axes[1] == "tensor" else None
    return nnx.Linear(
        d_in, d_out, kernel_init=init, rngs=rngs, kernel_metadata={PLACES: axes}, bias_metadata={PLACES: (bias,)}
    )


def layer_norm(d: int, rngs: nnx.Rngs, affine: bool) -> nnx.LayerNorm:
    """LayerNorm with eps 1e-6 and the two-pass variance; `affine` adds scale and shift."""
    return nnx.LayerNorm(d, epsilon=1e-6, use_scale=affine, use_bias=affine, use_fast_variance=False, rngs=rngs)


def normalize(layer: nnx.LayerNorm | nnx.RMSNorm, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    """Apply a normalisation in float32, its statistics and parameters included, and return to the format of `x`.

    LayerNorm is written out for its gradient: the variance does not change with the mean it is taken around, which autodiff would find
    out by summing once more over the channels.
    """
    wide = x.astype(jnp.float32)
    if isinstance(layer, nnx.RMSNorm):
        return layer(wide).astype(x.dtype)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide - jax.lax.stop_gradient(mean)), axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(variance + layer.epsilon)
    leading = range(x.ndim - 1)
    if layer.scale is not None:
        scale = scale * jnp.expand_dims(layer.scale[...], leading)
    y = (wide - mean) * scale
    return (y if layer.bias is None else y + jnp.expand_dims(layer.bias[...], leading)).astype(x.dtype)


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
        self.fc1 = linear(FREQUENCIES, d, rngs, EMBEDDING_INIT, COLUMNS)
        self.fc2 = linear(d, d, rngs, EMBEDDING_INIT, ROWS)

    def __call__(self, t: Float[Array, " B"]) -> Float[Array, "B D"]:
        features = timestep_features(t).astype(self.fc1.kernel.dtype)
        return self.fc2(nnx.silu(self.fc1(features)))


class LabelEmbedding(nnx.Module):
    """Table of class embeddings, N(0, 0.02); with label dropout a further row, index `num_classes`, is the null label."""

    def __init__(self, num_classes: int, dropout: float, d: int, rngs: nnx.Rngs):
        self.table = nnx.Embed(num_classes + (dropout > 0), d, embedding_init=EMBEDDING_INIT, rngs=rngs)

    def __call__(self, y: Int[Array, " B"]) -> Float[Array, "B D"]:
        return self.table(y).astype(self.table.embedding.dtype)  # the layer itself answers in float32


class Attention(nnx.Module):
    """Multi-head self-attention with one fused qkv projection (its Xavier limit is sqrt(6/4D)) and an output projection."""

    def __init__(self, d: int, num_heads: int, rngs: nnx.Rngs, compute: Compute = ONE_DEVICE, qk_norm: bool = False):
        self.num_heads, self.compute = num_heads, compute
        self.qkv = linear(d, 3 * d, rngs)
        self.proj = linear(d, d, rngs, axes=ROWS)
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm, self.k_norm = head_norm(d // num_heads, rngs), head_norm(d // num_heads, rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        b, t, d = x.shape
        q, k, v = self._heads(x)
        if self.qk_norm:
            q, k = normalize(self.q_norm, q), normalize(self.k_norm, k)
        return dense(self.proj, attend(self.compute.attention, q, k, v).reshape(b, t, d))

    def _heads(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T H K"], ...]:
        b, t, d = x.shape
        shape = (3, self.num_heads, d // self.num_heads)
        if self.compute.tensor == 1 or self.num_heads % self.compute.tensor:
            qkv = dense(self.qkv, x).reshape(b, t, *shape)
        else:
            # A contiguous part of the 3D columns is not whole heads: move the weights, which are small beside the activations.
            assert self.qkv.bias is not None
            kernel, bias = self.qkv.kernel[...].reshape(d, *shape), self.qkv.bias[...].reshape(shape)
            kernel = self.compute.whole_but(kernel, None, None, "tensor", None)
            qkv = jnp.einsum("btd,dchk->btchk", x, kernel) + bias[None, None]
        qkv = self.compute.split(qkv, None, None, "tensor", None)
        # The gradient of a split puts its parts side by side; that of three slices pads each to the whole and sums them.
        return tuple(jnp.squeeze(each, 2) for each in jnp.split(qkv, 3, axis=2))


class CrossAttention(nnx.Module):
    """Multi-head attention of the tokens to a short memory, with separate q, k, v and output projections."""

    def __init__(self, d: int, num_heads: int, rngs: nnx.Rngs, compute: Compute = ONE_DEVICE, qk_norm: bool = False):
        self.num_heads, self.compute = num_heads, compute
        self.q = linear(d, d, rngs, axes=COLUMNS)
        self.k = linear(d, d, rngs, axes=COLUMNS)
        self.v = linear(d, d, rngs, axes=COLUMNS)
        self.proj = linear(d, d, rngs, axes=ROWS)
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm, self.k_norm = head_norm(d // num_heads, rngs), head_norm(d // num_heads, rngs)

    def __call__(self, x: Float[Array, "B T D"], memory: Float[Array, "B M D"]) -> Float[Array, "B T D"]:
        d = x.shape[-1]
        q, k, v = (
            self.compute.split(
                dense(layer, y).reshape(*y.shape[:2], self.num_heads, d // self.num_heads), None, "tensor"
            )
            for layer, y in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        if self.qk_norm:
            q, k = normalize(self.q_norm, q), normalize(self.k_norm, k)
        # Two keys are too few for a fused kernel to be worth its constraints.
        kind = "xla" if self.compute.attention == "cudnn" else self.compute.attention
        return dense(self.proj, attend(kind, q, k, v).reshape(x.shape))


def head_norm(head_dim: int, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """RMSNorm with a learned scale over the channels of a head (query-key normalisation: Henry et al. 2020, Dehghani et al. 2023)."""
    return nnx.RMSNorm(head_dim, epsilon=1e-6, use_fast_variance=False, rngs=rngs)


class Mlp(nnx.Module):
    """D → hidden → D with the tanh-approximated GELU."""

    def __init__(self, d: int, hidden: int, rngs: nnx.Rngs, compute: Compute = ONE_DEVICE):
        self.compute = compute
        self.fc1 = linear(d, hidden, rngs, axes=COLUMNS)
        self.fc2 = linear(hidden, d, rngs, axes=ROWS)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        hidden = self.compute.split(dense(self.fc1, x), None, "tensor")
        return dense(self.fc2, nnx.gelu(hidden, approximate=True))


def modulate(x: Float[Array, "B T D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]) -> Float[Array, "B T D"]:
    """x · (1 + scale) + shift, the same for every token of an image."""
    return x * (1 + scale[:, None, :]) + shift[:, None, :]
