"""An extractor that compiles in a moment: a fixed random projection of 8x8 colour images, under the same interface as the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dit.score.features import Features, NetworkExtractor


def tiny_extractor(seed: int = 0, resize: str = "none", batch_size: int = 16) -> NetworkExtractor:
    """12 pooled features, 10 spatial ones, 5 logits."""
    weights = np.random.default_rng(seed).standard_normal((192, 27)).astype(np.float32) / 50

    def network(weights: jax.Array, images: jax.Array) -> Features:
        flat = images.reshape(len(images), -1).astype(jnp.float32) / 255
        pooled, spatial, logits = jnp.split(jnp.tanh(flat @ weights), [12, 22], axis=1)
        return Features(pooled, spatial, logits)

    return NetworkExtractor("tiny", f"{seed:064d}", resize, network, weights, image_size=8, batch_size=batch_size)


def some_images(count: int, seed: int) -> np.ndarray:
    """uint8 NHWC."""
    return np.random.default_rng(seed).integers(0, 256 - 100 * (seed % 2), (count, 8, 8, 3), dtype=np.uint8)
