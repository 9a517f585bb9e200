"""Optimizers and the moving average of the weights, as optax transformations and plain functions."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from dit.config import OptimConfig

Tree = TypeVar("Tree")


def adamw(config: OptimConfig) -> optax.GradientTransformation:
    """AdamW at a constant rate, decay decoupled (Loshchilov & Hutter 2019)."""
    transformation = optax.adamw(
        config.learning_rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )

    def update(updates, state, params=None):
        # optax raises a float to the integer step count, which strict promotion refuses; ours is the stricter code.
        with jax.numpy_dtype_promotion("standard"):
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(transformation.init, update)


def gradient_level(opt_state: PyTree, config: OptimConfig) -> Float[Array, ""]:
    """Running root mean square of the gradient norm, from AdamW's bias-corrected second moments; infinite before the first step."""
    count = optax.tree.get(opt_state, "count").astype(jnp.float32)
    squares = optax.tree.sum(jax.tree.map(jnp.sum, optax.tree.get(opt_state, "nu")))
    return jnp.where(count > 0, jnp.sqrt(squares / jnp.maximum(1 - config.b2**count, 1e-12)), jnp.inf)


def moving_average(ema: Tree, params: Tree, decay: float) -> Tree:
    """decay · ema + (1 - decay) · params."""
    return jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema, params)
