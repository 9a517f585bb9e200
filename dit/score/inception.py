"""The Inception v3 of December 2015 that FID is defined by, in Flax NNX, channels last.

Differs from the ImageNet Inception v3 of libraries: images are resized inside to 299 with TensorFlow 1's bilinear (no antialiasing,
corners not aligned) and mapped by (x - 128) / 128; average pooling leaves the padding out of its count; the last block pools by
maximum; the classifier has 1008 outputs. Batch normalisation is folded into each convolution when weights are loaded.
Outputs, named as in the ADM suite: `pool_3` (2048), the first 7 channels of `mixed_6/conv` after ReLU (17 x 17 x 7 = 2023, for sFID),
and logits with and without the bias. Layer names are those of the usual PyTorch file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, UInt8

from dit.score.features import Features, NetworkExtractor

NAME = "inception-2015"
RESIZE = "tf1-bilinear-299"
SIZE = 299
NUM_CLASSES = 1008
POOLED = 2048
SPATIAL_CHANNELS = 7

Shape = tuple[int, int, int, int]
"""Of a kernel: height, width, channels in, channels out."""


def _block_a(channels: int, pooled: int) -> dict[str, Shape]:
    return {
        "branch1x1": (1, 1, channels, 64),
        "branch5x5_1": (1, 1, channels, 48),
        "branch5x5_2": (5, 5, 48, 64),
        "branch3x3dbl_1": (1, 1, channels, 64),
        "branch3x3dbl_2": (3, 3, 64, 96),
        "branch3x3dbl_3": (3, 3, 96, 96),
        "branch_pool": (1, 1, channels, pooled),
    }


def _block_c(width: int) -> dict[str, Shape]:
    return {
        "branch1x1": (1, 1, 768, 192),
        "branch7x7_1": (1, 1, 768, width),
        "branch7x7_2": (1, 7, width, width),
        "branch7x7_3": (7, 1, width, 192),
        "branch7x7dbl_1": (1, 1, 768, width),
        "branch7x7dbl_2": (7, 1, width, width),
        "branch7x7dbl_3": (1, 7, width, width),
        "branch7x7dbl_4": (7, 1, width, width),
        "branch7x7dbl_5": (1, 7, width, 192),
        "branch_pool": (1, 1, 768, 192),
    }


def _block_e(channels: int) -> dict[str, Shape]:
    return {
        "branch1x1": (1, 1, channels, 320),
        "branch3x3_1": (1, 1, channels, 384),
        "branch3x3_2a": (1, 3, 384, 384),
        "branch3x3_2b": (3, 1, 384, 384),
        "branch3x3dbl_1": (1, 1, channels, 448),
        "branch3x3dbl_2": (3, 3, 448, 384),
        "branch3x3dbl_3a": (1, 3, 384, 384),
        "branch3x3dbl_3b": (3, 1, 384, 384),
        "branch_pool": (1, 1, channels, 192),
    }


BLOCKS: dict[str, dict[str, Shape]] = {
    "Mixed_5b": _block_a(192, 32),
    "Mixed_5c": _block_a(256, 64),
    "Mixed_5d": _block_a(288, 64),
    "Mixed_6a": {
        "branch3x3": (3, 3, 288, 384),
        "branch3x3dbl_1": (1, 1, 288, 64),
        "branch3x3dbl_2": (3, 3, 64, 96),
        "branch3x3dbl_3": (3, 3, 96, 96),
    },
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": {
        "branch3x3_1": (1, 1, 768, 192),
        "branch3x3_2": (3, 3, 192, 320),
        "branch7x7x3_1": (1, 1, 768, 192),
        "branch7x7x3_2": (1, 7, 192, 192),
        "branch7x7x3_3": (7, 1, 192, 192),
        "branch7x7x3_4": (3, 3, 192, 192),
    },
    "Mixed_7b": _block_e(1280),
    "Mixed_7c": _block_e(2048),
}
STEM: dict[str, Shape] = {
    "Conv2d_1a_3x3": (3, 3, 3, 32),
    "Conv2d_2a_3x3": (3, 3, 32, 32),
    "Conv2d_2b_3x3": (3, 3, 32, 64),
    "Conv2d_3b_1x1": (1, 1, 64, 80),
    "Conv2d_4a_3x3": (3, 3, 80, 192),
}
CONVOLUTIONS: dict[str, Shape] = STEM | {
    f"{block}.{branch}": shape for block, branches in BLOCKS.items() for branch, shape in branches.items()
}


class Folded(NamedTuple):
    """Every convolution with its normalisation folded in (kernel HWIO, bias), and the classifier; all float32 NumPy arrays."""

    convolutions: dict[str, tuple[np.ndarray, np.ndarray]]
    classifier: tuple[np.ndarray, np.ndarray]
    """Kernel (2048, 1008) and bias (1008,)."""


Precision = Literal["float32", "bfloat16", "bfloat16x3"]
"""Of the convolutions. `bfloat16x3` multiplies in bfloat16 but keeps each factor as a sum of two, and everything else in float32."""


class Convolution(nnx.Module):
    """Convolution, bias (from the folded normalisation) and ReLU."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray, precision: Precision):
        self.precision: Precision = precision
        self.kernel = nnx.Param(jnp.asarray(kernel, _dtype(precision)))
        self.bias = nnx.Param(jnp.asarray(bias, _dtype(precision)))

    def __call__(
        self, x: Float[Array, "B height width C"], stride: int = 1, padded: bool = False
    ) -> Float[Array, "B height_out width_out C_out"]:
        """`padded` keeps height and width, otherwise no padding; a stride never goes with it here."""
        convolve = functools.partial(
            lax.conv_general_dilated,
            window_strides=(stride, stride),
            # A row too many, dropped again: XLA on a CPU runs convolutions without any padding at less than half the speed.
            padding="SAME" if padded else ((0, stride), (0, 0)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = _product(convolve, x, self.kernel[...], self.precision)
        return jax.nn.relu((x if padded else x[:, :-1]) + self.bias[None, None, None])


class Block(nnx.Module):
    """One `Mixed_*` block: branches over the same input, concatenated over channels."""

    def __init__(self, name: str, folded: Folded, precision: Precision):
        self.kind = name
        self.precision: Precision = precision
        self.branches = nnx.Dict(
            {branch: Convolution(*folded.convolutions[f"{name}.{branch}"], precision) for branch in BLOCKS[name]}
        )

    def pointwise(self, x: Float[Array, "B height width C"], *names: str) -> list[Array]:
        """The 1x1 convolutions that share an input, as one matrix product.

        Averaging commutes with a 1x1 convolution up to the ReLU, so the pooled branch is averaged after it, over far fewer channels.
        """
        units = [self.branches[name] for name in names]
        kernels = [unit.kernel[...][0, 0] for unit in units]
        wide = _product(jnp.matmul, x.reshape(-1, x.shape[-1]), jnp.concatenate(kernels, axis=1), self.precision)
        wide = wide.reshape(*x.shape[:3], -1)
        ends = np.cumsum([kernel.shape[1] for kernel in kernels])[:-1].tolist()
        outputs = []
        for name, unit, part in zip(names, units, jnp.split(wide, ends, axis=-1)):
            part = _average_pool(part) if name == "branch_pool" and self.kind != "Mixed_7c" else part
            outputs.append(jax.nn.relu(part + unit.bias[None, None, None]))
        return outputs

    def __call__(self, x: Float[Array, "B height width C"]) -> Float[Array, "B height_out width_out C_out"]:
        """The block's output; which kind of block it is follows from its name."""
        match self.kind:
            case "Mixed_5b" | "Mixed_5c" | "Mixed_5d":
                parts = self._a(x)
            case "Mixed_6a":
                parts = self._b(x)
            case "Mixed_7a":
                parts = self._d(x)
            case "Mixed_7b" | "Mixed_7c":
                parts = self._e(x)
            case _:
                parts = self._c(x)
        return jnp.concatenate(parts, axis=-1)

    def _a(self, x: Array) -> list[Array]:
        layer = self.branches
        one, five, three, pooled = self.pointwise(x, "branch1x1", "branch5x5_1", "branch3x3dbl_1", "branch_pool")
        three = layer["branch3x3dbl_3"](layer["branch3x3dbl_2"](three, padded=True), padded=True)
        return [one, layer["branch5x5_2"](five, padded=True), three, pooled]

    def _b(self, x: Array) -> list[Array]:
        layer = self.branches
        double = layer["branch3x3dbl_2"](layer["branch3x3dbl_1"](x), padded=True)
        return [layer["branch3x3"](x, stride=2), layer["branch3x3dbl_3"](double, stride=2), _max_pool(x, 2)]

    def _c(self, x: Array) -> list[Array]:
        layer = self.branches
        one, single, double, pooled = self.pointwise(x, "branch1x1", "branch7x7_1", "branch7x7dbl_1", "branch_pool")
        for step in (2, 3):
            single = layer[f"branch7x7_{step}"](single, padded=True)
        for step in (2, 3, 4, 5):
            double = layer[f"branch7x7dbl_{step}"](double, padded=True)
        return [one, single, double, pooled]

    def _d(self, x: Array) -> list[Array]:
        layer = self.branches
        three, seven = self.pointwise(x, "branch3x3_1", "branch7x7x3_1")
        seven = layer["branch7x7x3_3"](layer["branch7x7x3_2"](seven, padded=True), padded=True)
        return [layer["branch3x3_2"](three, stride=2), layer["branch7x7x3_4"](seven, stride=2), _max_pool(x, 2)]

    def _e(self, x: Array) -> list[Array]:
        layer = self.branches
        if self.kind == "Mixed_7c":
            one, three, double = self.pointwise(x, "branch1x1", "branch3x3_1", "branch3x3dbl_1")
            (pooled,) = self.pointwise(_max_pool(x, 1), "branch_pool")
        else:
            one, three, double, pooled = self.pointwise(x, "branch1x1", "branch3x3_1", "branch3x3dbl_1", "branch_pool")
        double = layer["branch3x3dbl_2"](double, padded=True)
        wide = [layer["branch3x3_2a"](three, padded=True), layer["branch3x3_2b"](three, padded=True)]
        wide += [layer["branch3x3dbl_3a"](double, padded=True), layer["branch3x3dbl_3b"](double, padded=True)]
        return [one, *wide, pooled]


class Inception(nnx.Module):
    """The network, from uint8 images of any size to the four outputs in float32."""

    def __init__(self, folded: Folded, precision: Precision = "float32"):
        self.dtype = _dtype(precision)
        self.stem = nnx.Dict({name: Convolution(*folded.convolutions[name], precision) for name in STEM})
        self.blocks = nnx.Dict({name: Block(name, folded, precision) for name in BLOCKS})
        self.classifier = nnx.Param(jnp.asarray(folded.classifier[0]))
        self.classifier_bias = nnx.Param(jnp.asarray(folded.classifier[1]))

    def features(self, images: UInt8[Array, "B height width 3"]) -> Features:
        """Pooled and spatial features, and logits without the bias."""
        x = ((resize_tf1(images, SIZE) - 128) / 128).astype(self.dtype)
        x = self.stem["Conv2d_1a_3x3"](x, stride=2)
        x = self.stem["Conv2d_2b_3x3"](self.stem["Conv2d_2a_3x3"](x), padded=True)
        x = self.stem["Conv2d_4a_3x3"](self.stem["Conv2d_3b_1x1"](_max_pool(x, 2)))
        x = _max_pool(x, 2)
        spatial = None
        for name in BLOCKS:
            x = self.blocks[name](x)
            if name == "Mixed_6d":  # its first channels are those of branch1x1, TensorFlow's mixed_6/conv
                spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1).astype(jnp.float32)
        pooled = x.astype(jnp.float32).mean(axis=(1, 2))
        return Features(pooled, spatial, jnp.matmul(pooled, self.classifier[...], precision="highest"))

    def __call__(self, images: UInt8[Array, "B height width 3"]) -> Float[Array, "B classes"]:
        """Logits with the bias, as the classifier was trained."""
        return self.features(images).logits + self.classifier_bias[None]


def resize_tf1(images: UInt8[Array, "B height width C"], size: int) -> Float[Array, "B size size C"]:
    """TensorFlow 1's `resize_bilinear(align_corners=False)`: pixel i of the output is at i * (input / size), nothing antialiased."""
    x = images.astype(jnp.float32)
    for axis in (1, 2):
        # in float32, as there; these are constants of the compiled function
        at = np.arange(size, dtype=np.float32) * (np.float32(images.shape[axis]) / np.float32(size))
        low = np.floor(at).astype(np.int32)
        high = np.minimum(low + 1, images.shape[axis] - 1)
        share = (at - low.astype(np.float32)).reshape((1, -1, 1, 1) if axis == 1 else (1, 1, -1, 1))
        below, above = jnp.take(x, low, axis=axis), jnp.take(x, high, axis=axis)
        x = below + (above - below) * jnp.asarray(share)
    return x


def _max_pool(x: Array, stride: int) -> Array:
    """3x3; where the stride is 1 height and width stay."""
    lowest = jnp.array(-jnp.inf, x.dtype)
    padding = "SAME" if stride == 1 else "VALID"
    return lax.reduce_window(x, lowest, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average_pool(x: Array) -> Array:
    """3x3 with stride 1; at the border the mean of what lies inside."""
    total = lax.reduce_window(x, jnp.array(0, x.dtype), lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    inside = [np.minimum(np.arange(n) + 2, n) - np.maximum(np.arange(n) - 1, 0) for n in x.shape[1:3]]
    count = np.outer(inside[0], inside[1]).astype(np.float32)
    return total * jnp.asarray(1 / count, x.dtype)[None, :, :, None]


def _dtype(precision: Precision) -> Any:
    """Of weights and activations."""
    return jnp.bfloat16 if precision == "bfloat16" else jnp.float32


def _product(multiply: Callable[..., Array], x: Array, kernel: Array, precision: Precision) -> Array:
    """`multiply(x, kernel)`, which sums over the last axis of `x` and the last but one of `kernel`."""
    if precision != "bfloat16x3":
        return multiply(x, kernel, precision="highest")
    # (a + b)(c + d) without bd, which is below the rounding of the sum; one product over three times the channels
    (a, b), (c, d) = _halves(x), _halves(kernel)
    wide = jnp.concatenate([a, a, b], axis=-1), jnp.concatenate([c, d, c], axis=kernel.ndim - 2)
    return multiply(*wide, preferred_element_type=jnp.float32)


def _halves(x: Array) -> tuple[Array, Array]:
    """Two bfloat16 whose sum is `x` to 16 bits of mantissa."""
    high = x.astype(jnp.bfloat16)
    return high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)


def extractor(
    folded: Folded, weights_sha256: str, precision: Precision = "float32", batch_size: int = 32
) -> NetworkExtractor:
    """The FID Inception behind the extractor interface; in bfloat16 it says so in its name, since scores shift."""
    graph, parameters = nnx.split(Inception(folded, precision))
    return NetworkExtractor(
        name=NAME if precision == "float32" else f"{NAME}-{precision}",
        weights_sha256=weights_sha256,
        resize=RESIZE,
        network=lambda parameters, images: nnx.merge(graph, parameters).features(images),
        parameters=parameters,
        batch_size=batch_size,
    )
