"""How much memory a training step needs on one device, and with it what the backward pass should recompute.

Counted without compiling: what a step carries (parameters, two moments, average, gradient: 20 bytes a parameter in float32), and what the
forward pass keeps for the backward one, read off the traced model. Compilers reuse buffers and add some of their own, so the count
decides between policies and does not promise a fit; `dit plan` compiles where the number itself matters.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dit.design.blocks import CONDITION_TOKENS, block_of
from dit.design.config import Model, ModelConfig, Precision, RunArguments, RunConfig
from dit.design.memory_rules import KEPT_ON_CPU, USABLE, Policy, state_bytes
from dit.design.unet import UNetConfig
from dit.design.unet import flops as unet_flops
from dit.errors import UserError
from dit.model.blocks import make_block
from dit.model.compute import Compute, cast_params
from dit.model.mesh import mesh_shape
from dit.model.transformer import network, scanned


def choose_remat(
    run: RunConfig, compute: Compute, arguments: RunArguments, device: Any, limit: int | None = None
) -> Policy:
    """The policy asked for; of "auto" the one that recomputes least of those that fit, "none" where the memory is unknown.

    A CPU recomputes all but the products with weights as soon as it would keep much, because it is faster.

    Args:
        limit: bytes of memory of a device; as the device says if `None`.

    Raises:
        UserError: if what a step carries from one to the next does not fit by itself.
    """
    if arguments.remat != "auto":
        return arguments.remat
    limit = device_memory(device) if limit is None else limit
    if limit is None:
        return "none"
    shape = mesh_shape(compute.mesh)
    state = state_bytes(run, shape)
    if state > limit:
        raise UserError(
            f"{run.run} needs {state / 2**30:.1f} GiB a device for its weights and moments over {shape}, {device.device_kind} has "
            f"{limit / 2**30:.1f} GiB: use more devices along fsdp or tensor"
        )
    images = run.batch_size // (shape.batch_shards * arguments.accumulate)
    room = USABLE * limit - state
    most: dict[Policy, float] = {"none": min(room, KEPT_ON_CPU) if device.platform == "cpu" else room, "dots": room}
    if images * _at_most(run) < most["none"]:
        return "none"
    for policy, bound in most.items():
        if images * activation_bytes(run.model, run.precision, policy) < bound:
            return policy
    return "full"


def activation_bytes(model: Model, precision: Precision, remat: Policy, tensor: int = 1) -> int:
    """What one image's forward pass keeps for its backward pass, and one block's recomputation where there is any.

    XLA's attention keeps its products, also counted where a fused kernel would not. Over `tensor` devices each keeps its part of what
    grows with the MLP's width and with the heads.
    """
    if isinstance(model, UNetConfig):
        again = 0 if remat == "none" else 4 * unet_flops.recomputed(model)
        return _whole_residuals(model, precision, remat) + again
    kept = _kept(model, precision, remat) + _outside(model, precision)
    if tensor == 1:
        return kept
    fewer = dataclasses.replace(model, num_heads=1), dataclasses.replace(model, mlp_ratio=model.mlp_ratio / 2)
    heads, mlp = (kept - _kept(one, precision, remat) - _outside(one, precision) for one in fewer)
    split = heads * model.num_heads / max(model.num_heads - 1, 1) + 2 * mlp
    return kept - round(split * (1 - 1 / tensor))


def _outside(model: ModelConfig, precision: Precision) -> int:
    """What the embedding and the final layer keep: two tensors of the tokens' width in the format of products, two in float32."""
    return model.tokens * model.hidden_size * (2 * (2 if precision == "bfloat16" else 4) + 2 * 4)


def _kept(model: ModelConfig, precision: Precision, remat: Policy) -> int:
    """What the blocks keep of an image, and one block's recomputation."""
    model = dataclasses.replace(model, size="custom", ladder="custom")
    kept = _residuals(model, precision, remat)
    return kept if remat == "none" else kept + _residuals(model, precision, "none") // model.depth


@functools.lru_cache(maxsize=4096)
def _residuals(model: ModelConfig, precision: Precision, remat: Policy) -> int:
    """Bytes more that the transposed blocks close over for a second image: not the weights, which are there once."""
    compute = Compute(precision, remat, attention="xla")
    graph, one = nnx.split(nnx.eval_shape(lambda: make_block(model, nnx.Rngs(0), compute)))
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((model.depth, *leaf.shape), leaf.dtype), one)
    block, d = block_of(model), model.hidden_size

    def bytes_of(images: int) -> int:
        x = jax.ShapeDtypeStruct((images, block.tokens(model), d), compute.dtype)
        shape = (images, d) if block.condition == "sum" else (images, CONDITION_TOKENS, d)

        def transposed(params: Any, x: Any, condition: Any) -> Any:
            return jax.vjp(
                lambda p, x, c: scanned(graph, cast_params(p, compute.dtype), x, c, compute), params, x, condition
            )[1]

        leaves = jax.tree.leaves(jax.eval_shape(transposed, stacked, x, jax.ShapeDtypeStruct(shape, compute.dtype)))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    with jax.numpy_dtype_promotion("standard"):
        return bytes_of(2) - bytes_of(1)


@functools.lru_cache(maxsize=256)
def _whole_residuals(model: UNetConfig, precision: Precision, remat: Policy) -> int:
    """As `_residuals`, of a network that is no stack of equal blocks."""
    compute = Compute(precision, remat, attention="xla")
    graph, params = nnx.split(nnx.eval_shape(lambda: network(model, rngs=nnx.Rngs(0), compute=compute)))

    def transposed(params: Any, x: Any, t: Any, y: Any) -> Any:
        return jax.vjp(lambda p: nnx.merge(graph, cast_params(p, compute.dtype))(x, t, y), params)[1]

    def bytes_of(images: int) -> int:
        x = jax.ShapeDtypeStruct((images, model.input_size, model.input_size, model.in_channels), jnp.float32)
        t, y = (jax.ShapeDtypeStruct((images,), dtype) for dtype in (jnp.float32, jnp.int32))
        leaves = jax.tree.leaves(jax.eval_shape(transposed, params, x, t, y))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    return bytes_of(2) - bytes_of(1)


def _at_most(run: RunConfig) -> int:
    """A bound on what an image keeps without recomputation, at once: small models need no tracing."""
    model = run.model
    if isinstance(model, UNetConfig):
        return 4 * unet_flops.kept(model)
    tokens = model.tokens + 2
    block = 4 * tokens * (40 * model.hidden_size + 12 * model.mlp_hidden_size + 12 * model.num_heads * tokens)
    return (model.depth + 2) * block


def device_memory(device: Any) -> int | None:
    """Bytes of a device, of a CPU its share of the machine's; `None` where it does not say."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    try:
        stats = device.memory_stats()
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None  # a device that is only described, to compile for
    return (stats or {}).get("bytes_limit")
