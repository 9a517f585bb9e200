"""How much memory a training step needs on one device, and with it what the backward pass should recompute.

Counted without compiling: what a step carries (parameters, two moments, average, gradient: 20 bytes a parameter in float32), and what the
forward pass keeps for the backward one, read off the traced model. Compilers reuse buffers and add some of their own, so the count
decides between policies and does not promise a fit; `dit plan` compiles where the number itself matters.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dit.design import unet_flops
from dit.design.config import RunArguments, RunConfig
from dit.design.memory_rules import KEPT_ON_CPU, USABLE, Policy, state_bytes
from dit.design.unet import UNetConfig
from dit.errors import UserError
from dit.model.compute import Compute, cast_params
from dit.model.mesh import mesh_shape
from dit.model.transformer import network


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
        if images * activation_bytes(run, dataclasses.replace(compute, remat=policy)) < bound:
            return policy
    return "full"


def activation_bytes(run: RunConfig, compute: Compute) -> int:
    """What one image's forward pass keeps for its backward pass, and one block's recomputation where there is any.

    XLA's attention keeps its products, also counted where a fused kernel would not.
    """
    kept = _residuals(run, compute, 2) - _residuals(run, compute, 1)
    if compute.remat == "none":
        return kept
    if isinstance(run.model, UNetConfig):
        return kept + 4 * unet_flops.recomputed(run.model)
    plain = dataclasses.replace(compute, remat="none")
    return kept + (_residuals(run, plain, 2) - _residuals(run, plain, 1)) // run.model.depth


def _residuals(run: RunConfig, compute: Compute, images: int) -> int:
    """Bytes of everything that the transposed model closes over."""
    compute = dataclasses.replace(compute, mesh=None, attention="xla")
    graph, params = nnx.split(nnx.eval_shape(lambda: network(run.model, rngs=nnx.Rngs(0), compute=compute)))
    size = run.model.input_size
    x = jax.ShapeDtypeStruct((images, size, size, run.model.in_channels), jnp.float32)
    t, y = (jax.ShapeDtypeStruct((images,), dtype) for dtype in (jnp.float32, jnp.int32))

    def transposed(params: Any, x: Any, t: Any, y: Any) -> Any:
        return jax.vjp(lambda p: nnx.merge(graph, cast_params(p, compute.dtype))(x, t, y), params)[1]

    leaves = jax.tree.leaves(jax.eval_shape(transposed, params, x, t, y))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


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
