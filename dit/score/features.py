"""What turns images into features for the metrics, behind one small interface.

A new extractor supplies `network(parameters, images) -> Features`, a pure JAX function of a uint8 NHWC batch that does its own
resize and normalisation, and wraps it in `NetworkExtractor`, which compiles it once per batch shape, pads the last partial batch
and shards each batch over this process's devices. Anything else with the members of `Extractor` will do as well.

`name`, `weights_sha256` and `resize` say under which protocol a score was taken: statistics whose three differ are never compared.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import UInt8

from dit.design import features as parts
from dit.design import metrics
from dit.design.metrics import INCEPTION
from dit.design.parts import find, load, names, reference_to
from dit.errors import UserError


class Features(NamedTuple):
    """Features of B images, float32: NumPy arrays outside an extractor, JAX arrays inside its network."""

    pooled: Any
    """(B, F): FID, precision and recall, KID."""
    spatial: Any
    """(B, S): sFID. A few channels of a map that still has positions, flattened. None where there is no such map."""
    logits: Any
    """(B, K): Inception Score, whose softmax leaves the classifier's bias out (so must these). None where there are none."""


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


PRECISIONS = ("bfloat16", "bfloat16x3")
"""Number formats of the Inception network's products besides float32, named after it as in `inception-bfloat16`."""


def extractor_names() -> list[str]:
    """What `make_extractor` knows."""
    return [*names(parts.Features), *(f"{INCEPTION}-{precision}" for precision in PRECISIONS)]


def make_extractor(name: str, weights: str | None = None, batch_size: int = 32) -> Extractor:
    """The extractor of some features: the FID Inception (weights by path, or `random:SEED` for demonstrations), a small-image classifier,
    or a function of the user's own.

    Raises:
        UserError: for another name, or weights that are missing, damaged or not called for.
    """
    base, _, precision = name.partition("-")
    known = precision in PRECISIONS and base == INCEPTION
    record = find(parts.Features, base if known else name)
    if callable(record.make):
        return OwnExtractor(record, record.make)
    return load(record.make)(record, weights, batch_size, *([precision] if known else []))


def fid_inception(
    record: parts.Features, weights: str | None, batch_size: int, precision: Any = "float32"
) -> Extractor:
    """The FID Inception, in a number format of its products."""
    from dit.score import inception, inception_weights

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
    return metrics.column(metric, extractor.metric_suffix)


@dataclass(frozen=True, eq=False)
class OwnExtractor:
    """An `Extractor` around a user's own function of images, which gives (N, F), or (pooled, spatial, logits); the last two may be None."""

    record: parts.Features
    function: Callable[[np.ndarray], Any]
    resize: str = "none"

    @property
    def name(self) -> str:
        """Its name and source."""
        return reference_to(self.record)

    @property
    def weights_sha256(self) -> str:
        """Of the function's source."""
        return hashlib.sha256(self.record.source.encode()).hexdigest()

    @property
    def channels(self) -> int:
        """Image channels that it takes."""
        return self.record.channels

    @property
    def metric_suffix(self) -> str:
        """The features' name."""
        return self.record.name

    def extract(self, images: UInt8[np.ndarray, "B height width channels"]) -> Features:
        """Features of the images.

        Raises:
            UserError: if the function raises, or gives no row for each image.
        """
        try:
            given = self.function(images)
        except Exception as error:
            raise UserError(f"features '{self.record.name}' raised {type(error).__name__}: {error}") from error
        whole = given if isinstance(given, tuple) else (given, None, None)
        found = [None if one is None else np.asarray(one, np.float32) for one in whole]
        if len(found) != 3 or found[0] is None or any(x is not None and x.shape[:1] != (len(images),) for x in found):
            shapes = [None if one is None else one.shape for one in found]
            raise UserError(
                f"features '{self.record.name}' gave {shapes} for {len(images)} images: expected (N, F), or three of them"
            )
        return Features(*(None if one is None else one.reshape(len(images), -1) for one in found))


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
