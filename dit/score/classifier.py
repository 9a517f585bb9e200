"""The small-image feature extractor: a classifier trained once per data set, deterministically, and cached.

Its features make Fréchet distances on images far too small for Inception. They are named after the data set (`fd_digits`), never
`fid`: they compare models with each other, not with published numbers. Features: the penultimate layer (pooled, 64), the first seven
channels of the last convolution (spatial), and logits without bias.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from dit.data.batches import ImageDataset, load_images
from dit.design import features as parts
from dit.design.config import OptimConfig, digest
from dit.errors import UserError
from dit.score.features import Features, NetworkExtractor
from dit.store.environment import cache_folder
from dit.store.files import whole
from dit.store.study import exclusive
from dit.train.optim import adamw

RECIPE = {
    "channels": [32, 64],
    "features": 64,
    "steps": 400,
    "batch_size": 128,
    "learning_rate": 2e-3,
    "seed": 0,
    "version": 1,
}
SPATIAL_CHANNELS = 7


class Classifier(nnx.Module):
    """Two strided convolutions, a hidden layer of 64, and a linear classifier without bias."""

    def __init__(self, image_size: int, in_channels: int, num_classes: int, rngs: nnx.Rngs):
        first, second = RECIPE["channels"]
        stride = 2 if image_size > 8 else 1
        self.conv1 = nnx.Conv(in_channels, first, (3, 3), strides=stride, rngs=rngs)
        self.conv2 = nnx.Conv(first, second, (3, 3), strides=2, rngs=rngs)
        side = (-(-image_size // stride) + 1) // 2
        self.hidden = nnx.Linear(side * side * second, RECIPE["features"], rngs=rngs)
        self.head = nnx.Linear(RECIPE["features"], num_classes, use_bias=False, rngs=rngs)

    def __call__(self, images: Float[Array, "B I I C"]) -> Features:
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))
        spatial = x[..., :SPATIAL_CHANNELS].reshape(x.shape[0], -1)
        pooled = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return Features(pooled, spatial, self.head(pooled))


def extractor(record: parts.Features, weights: str | None = None, batch_size: int = 256) -> NetworkExtractor:
    """The classifier of a data set, as an extractor: read from the cache, or trained there first (seconds).

    Raises:
        UserError: for weights, of which it has its own, or a data set that is not there.
    """
    if weights is not None:
        raise UserError(f"--weights {weights} with extractor {record.name}, which trains its own: leave --weights out")
    images, labels = load_images(record.data, record.data_source)
    model = nnx.eval_shape(lambda: _classifier(images, labels))
    graph, state = nnx.split(model)
    whose = record.name
    if record.source:  # a user's data may change under their name
        whose += f"-{hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:12]}"
    path = cache_folder() / f"classifier-{whose}-{digest(RECIPE)}.npz"
    with exclusive(path.with_suffix(".lock"), wait=True):  # workers that start together train it once
        if not path.exists():
            _write(path, _train(images, labels))
    with np.load(path) as arrays:
        parameters = [jnp.asarray(arrays[key]) for key in arrays.files]
    sha256 = hashlib.sha256(b"".join(np.asarray(p).tobytes() for p in parameters)).hexdigest()
    treedef = jax.tree.structure(state)

    def network(parameters: list[Array], images: UInt8[Array, "B I I C"]) -> Features:
        pixels = images.astype(jnp.float32) / 127.5 - 1.0
        return nnx.merge(graph, jax.tree.unflatten(treedef, parameters))(pixels)

    return NetworkExtractor(
        name=f"classifier-{record.name}",
        weights_sha256=sha256,
        resize="none",
        network=network,
        parameters=parameters,
        channels=images.shape[3],
        image_size=images.shape[1],
        batch_size=batch_size,
        metric_suffix=record.name,
    )


def _classifier(images: np.ndarray, labels: np.ndarray) -> Classifier:
    return Classifier(images.shape[1], images.shape[3], int(labels.max()) + 1, nnx.Rngs(RECIPE["seed"]))


def _write(path: Path, parameters: list[np.ndarray]) -> None:
    with whole(path) as beside, beside.open("wb") as file:
        np.savez(file, *parameters)


def _train(images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Parameters after training on the whole data set with Adam, in the order of the flattened state."""
    dataset = ImageDataset(images, labels, RECIPE["batch_size"], RECIPE["seed"])
    model = _classifier(images, labels)
    graph, parameters = nnx.split(model)
    optimizer = adamw(OptimConfig(learning_rate=RECIPE["learning_rate"]))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters, moments, images: Float[Array, "B I I C"], labels: Int[Array, " B"]):
        def loss(parameters):
            logits = nnx.merge(graph, parameters)(images).logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, moments = optimizer.update(jax.grad(loss)(parameters), moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    moments = optimizer.init(parameters)
    for i in range(RECIPE["steps"]):
        parameters, moments = step(parameters, moments, *dataset.batch(i))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(parameters)]
