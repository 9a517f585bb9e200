"""Optimizers and the moving average of the weights, as optax transformations and plain functions."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from dit.design.config import OptimConfig

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


TOGETHER = 2**18
"""Elements of an array up to which it is small: the sum over it takes less time than starting the operation."""


def gradient_norm(gradients: PyTree, together: bool) -> Float[Array, ""]:
    """Euclidean norm over all leaves. `together` sums the small ones as one array, which a mesh would have to gather first."""
    leaves: list[Array] = jax.tree.leaves(gradients)
    small = [leaf.ravel() for leaf in leaves if leaf.size <= TOGETHER]
    if together and small:
        leaves = [jnp.concatenate(small), *(leaf for leaf in leaves if leaf.size > TOGETHER)]
    return jnp.sqrt(optax.tree.sum([jnp.sum(jnp.square(leaf)) for leaf in leaves]))


def level_before(opt_state: PyTree, grad_norm: Float[Array, ""], config: OptimConfig) -> Float[Array, ""]:
    """Running root mean square of the gradient norm before the step that left `opt_state`; infinite if that was the first.

    From AdamW's bias-corrected second moments less what this step's gradient, of norm `grad_norm`, put in. Reading the moments before
    the step as well as changing them in place would have each of them copied.
    """
    count = optax.tree.get(opt_state, "count").astype(jnp.float32) - 1
    squares = optax.tree.sum(jax.tree.map(jnp.sum, optax.tree.get(opt_state, "nu")))
    before = jnp.maximum(squares - (1 - config.b2) * grad_norm**2, 0.0) / config.b2
    return jnp.where(count > 0, jnp.sqrt(before / jnp.maximum(1 - config.b2**count, 1e-12)), jnp.inf)


def moving_average(ema: Tree, params: Tree, decay: float) -> Tree:
    """decay · ema + (1 - decay) · params."""
    return jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema, params)
