"""The count of a block by walking its traced form: a count in closed form is held against it, and it stands in where none is given."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dit.design.blocks import Count, block_of
from dit.design.config import ModelConfig
from dit.errors import UserError
from dit.model.blocks import make_block


def block_count(model: ModelConfig, tokens: int) -> dict[str, Count]:
    """Multiply-adds for one image and parameters of one block, as one component.

    Raises:
        UserError: if the block gives back tokens of another shape, or loops so that its products cannot be counted.
    """
    return {"block": _traced(model, tokens)}


def require_count(model: ModelConfig) -> None:
    """Hold the count that a block gives against the traced one.

    Raises:
        UserError: naming both, where they differ, and as `block_count` does.
    """
    block = block_of(model)
    assert block.count is not None
    given, found = block.count(model, block.tokens(model)), _traced(model, block.tokens(model))
    macs, params = sum(one.macs for one in given.values()), sum(one.params for one in given.values())
    for what, said, true in (("multiply-adds", macs, found.macs), ("parameters", params, found.params)):
        if said != true:
            raise UserError(
                f"block '{block.name}' counts {said:,} {what} of one block of {model.size}/{model.patch_size}, the traced model has "
                f"{true:,}: mend its count, or leave it out"
            )


@functools.lru_cache(maxsize=512)
def _traced(model: ModelConfig, tokens: int) -> Count:
    block, d = block_of(model), model.hidden_size
    graph, state = nnx.split(nnx.eval_shape(lambda: make_block(model, nnx.Rngs(0))))
    x = jax.ShapeDtypeStruct((1, tokens, d), jnp.float32)
    condition = jax.ShapeDtypeStruct((1, d) if block.condition == "sum" else (1, 2, d), jnp.float32)
    jaxpr, out = jax.make_jaxpr(lambda s, x, c: nnx.merge(graph, s)(x, c), return_shape=True)(state, x, condition)
    shape = getattr(out, "shape", None)
    if shape != x.shape:
        raise UserError(
            f"block '{block.name}' gives back {shape or type(out).__name__} for tokens of {x.shape}: expected the same shape"
        )
    return Count(macs_of(jaxpr.jaxpr, block.name), sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state)))


def macs_of(jaxpr: Any, what: str = "model") -> int:
    """Multiply-adds of every product in a jaxpr, those of a scanned body as often as it runs.

    Raises:
        UserError: for loops and branches, which run as often as the data say.
    """
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in ("while", "cond"):
            raise UserError(f"block '{what}' has a {name}, which runs as often as the data say: give it a count")
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted) * math.prod(
                eqn.outvars[0].aval.shape
            )
        elif name == "conv_general_dilated":
            kernel, features = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec[0]
            total += math.prod(kernel) // kernel[features] * math.prod(eqn.outvars[0].aval.shape)
        inner = [getattr(value, "jaxpr", value) for value in eqn.params.values()]
        times = eqn.params["length"] if name == "scan" else 1
        total += times * sum(macs_of(part, what) for part in inner if hasattr(part, "eqns"))
    return total
