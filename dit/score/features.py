"""What turns images into features for the metrics, behind one small interface.

A new extractor supplies `network(parameters, images) -> Features`, a pure JAX function of a uint8 NHWC batch that does its own
resize and normalisation, and wraps it in `NetworkExtractor`, which compiles it once per batch shape, pads the last partial batch
and shards each batch over this process's devices. Anything else with the members of `Extractor` will do as well.

`name`, `weights_sha256` and `resize` say under which protocol a score was taken: statistics whose three differ are never compared.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import UInt8

from dit.errors import UserError


class Features(NamedTuple):
    """Features of B images, float32: NumPy arrays outside an extractor, JAX arrays inside its network."""

    pooled: Any
    """(B, F): FID, precision and recall, KID."""
    spatial: Any
    """(B, S): sFID. A few channels of a map that still has positions, flattened."""
    logits: Any
    """(B, K): Inception Score, whose softmax leaves the classifier's bias out (so must these)."""


@runtime_checkable
class Extractor(Protocol):
    """What the metrics need to know of an extractor."""

    @property
    def name(self) -> str:
        """Its name in every row and statistics file, such as `inception-2015`."""
        ...

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights file, or of the arrays where there is no file."""
        ...

    @property
    def resize(self) -> str:
        """How images reach the network's size, such as `tf1-bilinear-299`."""
        ...

    @property
    def channels(self) -> int:
        """Image channels that it takes."""
        ...

    @property
    def metric_suffix(self) -> str:
        """Empty for the FID Inception; else names the scores as what they are: `digits` makes `fid` into `fd_digits`."""
        ...

    def extract(self, images: UInt8[np.ndarray, "B height width channels"]) -> Features:
        """Features of the images, in order, as float32 NumPy arrays with as many rows as there are images."""
        ...


NAMES = ("inception", "inception-bfloat16", "inception-bfloat16x3", "digits", "mnist")


def make_extractor(name: str, weights: str | None = None, batch_size: int = 32) -> Extractor:
    """One of `NAMES`: the FID Inception (weights by path, or `random:SEED` for demonstrations), or a small-image classifier.

    Raises:
        UserError: for another name, or weights that are missing or damaged.
    """
    if name in ("digits", "mnist"):
        from dit.score.classifier import small_image_extractor

        if weights is not None:
            raise UserError(f"--weights {weights} with extractor {name}, which trains its own: leave --weights out")
        return dataclasses.replace(small_image_extractor(name), batch_size=batch_size)
    if name not in NAMES:
        raise UserError(f"extractor '{name}' is unknown: expected one of {', '.join(NAMES)}")
    from dit.score import inception, inception_weights

    precision: Any = name.removeprefix("inception").removeprefix("-") or "float32"
    if weights is None or not weights.startswith("random:"):
        path = inception_weights.locate(None if weights is None else Path(weights))
        folded, sha256 = inception_weights.load(path)
        return inception.extractor(folded, sha256, precision, batch_size)
    seed = weights.removeprefix("random:")
    if not seed.isdigit():
        raise UserError(f"--weights {weights}: expected a file, or random:SEED with a number")
    state = inception_weights.random(int(seed))
    made = inception.extractor(
        inception_weights.fold(state), inception_weights.weights_hash(state), precision, batch_size
    )
    return dataclasses.replace(made, name=f"{made.name}-random-{seed}", metric_suffix=f"random_{seed}")


def column(extractor: Extractor, metric: str) -> str:
    """The name of a metric's column: `fid`, or `fd_digits` where features are not the FID Inception's."""
    if not extractor.metric_suffix:
        return metric
    return f"{metric.replace('fid', 'fd')}_{extractor.metric_suffix}"


@dataclass(frozen=True, eq=False)
class NetworkExtractor:
    """An `Extractor` around a pure function, batched, padded and sharded over the local devices.

    Args:
        network: `(parameters, uint8 images (B, H, W, channels)) -> Features`, traceable.
        channels: image channels that the network takes; others are refused.
        image_size: height and width that the network takes, or None where it resizes.
        batch_size: images per dispatch over all local devices; rounded up to a multiple of their number.
    """

    name: str
    weights_sha256: str
    resize: str
    network: Callable[[Any, jax.Array], Features]
    parameters: Any
    channels: int = 3
    image_size: int | None = None
    batch_size: int = 32
    metric_suffix: str = ""
    devices: tuple[Any, ...] = field(default_factory=lambda: tuple(jax.local_devices()))

    def extract(self, images: UInt8[np.ndarray, "B height width channels"]) -> Features:
        """Features of the images, in order.

        Raises:
            UserError: for no images, or images of another type or shape than the network takes.
        """
        self.check(images)
        batches = [jax.device_get(features) for features in self._dispatched(images)]
        return Features(*(np.concatenate(parts)[: len(images)] for parts in zip(*batches)))

    def check(self, images: np.ndarray) -> None:
        """Refuse what the network would misread."""
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
            raise UserError(
                f"images are {images.dtype} of shape {images.shape}: expected uint8 (number, height, width, {self.channels})"
            )
        if images.shape[3] != self.channels:
            how = "keep one channel of grey ones" if self.channels == 1 else "repeat grey three times, drop alpha"
            raise UserError(
                f"images have {images.shape[3]} channel(s), {self.name} takes {self.channels}: convert them ({how}) or choose another "
                "--extractor"
            )
        if self.image_size is not None and images.shape[1:3] != (self.image_size, self.image_size):
            raise UserError(
                f"images are {images.shape[1]}x{images.shape[2]}, {self.name} takes {self.image_size}x{self.image_size}: resize them"
            )

    @functools.cached_property
    def _compiled(self) -> tuple[Callable[..., Features], Any, NamedSharding]:
        mesh = Mesh(np.array(self.devices), ("batch",))
        split, whole = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())
        return jax.jit(self.network, out_shardings=split), jax.device_put(self.parameters, whole), split

    def _dispatched(self, images: np.ndarray) -> Iterator[Features]:
        """One batch ahead of the host, every batch of one shape: the last is filled up with its own last image."""
        compiled, parameters, split = self._compiled
        size = -(-self.batch_size // len(self.devices)) * len(self.devices)
        ahead = None
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            if len(batch) < size:
                batch = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            features = compiled(parameters, jax.device_put(batch, split))
            if ahead is not None:
                yield ahead
            ahead = features
        if ahead is not None:
            yield ahead
