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
from dit.design.config import DATASETS, OptimConfig, digest
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
        positions = (image_size // stride // 2) ** 2
        self.hidden = nnx.Linear(positions * second, RECIPE["features"], rngs=rngs)
        self.head = nnx.Linear(RECIPE["features"], num_classes, use_bias=False, rngs=rngs)

    def __call__(self, images: Float[Array, "B I I C"]) -> Features:
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images))))
        spatial = x[..., :SPATIAL_CHANNELS].reshape(x.shape[0], -1)
        pooled = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return Features(pooled, spatial, self.head(pooled))


def small_image_extractor(name: str) -> NetworkExtractor:
    """The extractor of data set `name`: read from the cache, or trained there first (seconds)."""
    data = DATASETS[name]
    model = nnx.eval_shape(lambda: Classifier(data.image_size, data.in_channels, data.num_classes, nnx.Rngs(0)))
    graph, state = nnx.split(model)
    path = cache_folder() / f"classifier-{name}-{digest(RECIPE)}.npz"
    with exclusive(path.with_suffix(".lock"), wait=True):  # workers that start together train it once
        if not path.exists():
            _write(path, _train(name))
    with np.load(path) as arrays:
        parameters = [jnp.asarray(arrays[key]) for key in arrays.files]
    sha256 = hashlib.sha256(b"".join(np.asarray(p).tobytes() for p in parameters)).hexdigest()
    treedef = jax.tree.structure(state)

    def network(parameters: list[Array], images: UInt8[Array, "B I I C"]) -> Features:
        pixels = images.astype(jnp.float32) / 127.5 - 1.0
        return nnx.merge(graph, jax.tree.unflatten(treedef, parameters))(pixels)

    return NetworkExtractor(
        name=f"classifier-{name}",
        weights_sha256=sha256,
        resize="none",
        network=network,
        parameters=parameters,
        channels=data.in_channels,
        image_size=data.image_size,
        batch_size=256,
        metric_suffix=name,
    )


def _write(path: Path, parameters: list[np.ndarray]) -> None:
    with whole(path) as beside, beside.open("wb") as file:
        np.savez(file, *parameters)


def _train(name: str) -> list[np.ndarray]:
    """Parameters after training on the whole data set with Adam, in the order of the flattened state."""
    data = DATASETS[name]
    dataset = ImageDataset(*load_images(name), RECIPE["batch_size"], RECIPE["seed"])
    model = Classifier(data.image_size, data.in_channels, data.num_classes, nnx.Rngs(RECIPE["seed"]))
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
