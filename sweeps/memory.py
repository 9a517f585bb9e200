"""Memory of a training step on one device, counted from the model's shapes without compiling anything (no JAX).

Counted are what a step carries (parameters, two moments, moving average: 16 bytes a parameter), the gradient (4), a bfloat16 copy of the
weights where there is one (2), layers that fsdp gathers, and what the forward pass keeps for the backward one. The last follows from the
network in `dit.model`: per block so many tensors of the tokens' width D, of the MLP's width, and of the attention's heads · tokens², as
`KEPT` lists them; the tests hold it near what JAX's own linearisation keeps. A compiler reuses buffers and adds its own: see
docs/planning.md for how far it is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from dit.design import unet_flops
from dit.design.blocks import block_of
from dit.design.config import RunConfig
from dit.design.memory_rules import KEPT_ON_CPU, USABLE, Policy, state_bytes
from dit.design.topology import MeshShape
from dit.design.unet import UNetConfig

POLICIES: tuple[Policy, ...] = get_args(Policy)


@dataclass(frozen=True)
class Kept:
    """Tensors that one block keeps of each image: of width D in the format of products and always in float32, of the MLP's width, of
    heads · tokens² (as many in the format of products as in float32), and vectors of width D that an image has once."""

    width: int
    width_float32: int = 0
    mlp: int = 0
    attention: int = 0
    vectors: int = 0


KEPT: dict[Policy, dict[str, Kept]] = {
    # 12 to 18 of width D: the inputs of products and norms, queries, keys, values, the residuals at each gate and sum.
    "none": {
        "adaln_zero": Kept(10, 4, 6, 1, vectors=10),
        "adaln": Kept(8, 4, 6, 1, vectors=8),
        "cross_attention": Kept(9, 9, 6, 1),
        "in_context": Kept(6, 6, 6, 1),
    },
    # The results of products with weights (qkv 3, projections 1 each, the MLP's first), and the block's input.
    "dots": {
        "adaln_zero": Kept(6, mlp=1, vectors=6),
        "adaln": Kept(5, mlp=1, vectors=4),
        "cross_attention": Kept(7, mlp=1, vectors=4),
        "in_context": Kept(5, mlp=1),
    },
    "full": {
        "adaln_zero": Kept(1),
        "adaln": Kept(1),
        "cross_attention": Kept(1),
        "in_context": Kept(1),
    },
}
OUTSIDE = Kept(2, 2)
"""What the embedding and the final layer keep."""


@dataclass(frozen=True)
class Need:
    """What one device needs under a policy.

    Attributes:
        needed: bytes; `None` where the cell cannot run on the mesh at all.
        auto: the policy that training would choose by itself, where it is known.
        why_not: why it does not fit.
        report: of a compiled step, what `dit.train.ahead` told.
    """

    remat: str
    needed: int | None
    source: str
    fits: bool
    auto: str | None = None
    why_not: str | None = None
    report: dict[str, Any] | None = None


def estimate(run: RunConfig, shape: MeshShape, remat: str, limit: int, on_cpu: bool = False) -> Need:
    """Bytes of one device for a step under the policy; "auto" takes the one that recomputes least of those within `USABLE`, else "full".

    Args:
        limit: bytes that a program may use of a device.
        on_cpu: whether "auto" keeps no more than a CPU should.
    """
    if isinstance(run.model, UNetConfig) and shape.tensor > 1:
        return Need(remat, None, "analytic", False, why_not=f"a U-Net is not split over tensor={shape.tensor}")
    if run.batch_size % shape.batch_shards:
        why = f"batch {run.batch_size} does not divide over {shape.batch_shards} devices"
        return Need(remat, None, "analytic", False, why_not=why)
    policies = POLICIES if remat == "auto" else (remat,)
    images = run.batch_size // shape.batch_shards
    if remat == "auto" and on_cpu and images * activation_bytes(run, "none", shape.tensor) >= KEPT_ON_CPU:
        policies = policies[1:]
    for policy in policies:
        needed = step_bytes(run, shape, policy)
        if needed <= USABLE * limit:
            break
    fits = needed <= limit
    why = None if fits else f"needs {needed / 2**30:.1f} GiB of {limit / 2**30:.2f}"
    return Need(policy, needed, "analytic", fits, why_not=why)


def step_bytes(run: RunConfig, shape: MeshShape, remat: str) -> int:
    """Bytes of one device: state, gradient, weights in bfloat16, gathered layers, and activations of its part of the batch."""
    return state_bytes(run, shape) + run.batch_size // shape.batch_shards * activation_bytes(run, remat, shape.tensor)


def activation_bytes(run: RunConfig, remat: str, tensor: int = 1) -> int:
    """Bytes that one image's forward pass keeps, with those of the one block that is being recomputed; `tensor` splits MLP and heads."""
    model = run.model
    if isinstance(model, UNetConfig):
        size = 4 if run.precision == "float32" else 3
        again = 0 if remat == "none" else unet_flops.recomputed(model)
        return size * (unet_flops.kept(model, remat) + again)  # type: ignore[arg-type]  # a policy's name
    tokens = block_of(model).tokens(model)
    block = _bytes(run, KEPT[remat][model.block], tokens, tensor)  # type: ignore[index]  # a policy's name
    recomputed = 0 if remat == "none" else _bytes(run, KEPT["none"][model.block], tokens, tensor)
    return model.depth * block + recomputed + _bytes(run, OUTSIDE, model.tokens, tensor)


def _bytes(run: RunConfig, kept: Kept, tokens: int, tensor: int) -> int:
    model, half = run.model, 2 if run.precision == "bfloat16" else 4
    assert not isinstance(model, UNetConfig)
    width = tokens * model.hidden_size * (kept.width * half + kept.width_float32 * 4)
    mlp = kept.mlp * tokens * model.mlp_hidden_size * half // tensor
    attention = kept.attention * model.num_heads * tokens**2 * (half + 4) // tensor
    return width + mlp + attention + kept.vectors * model.hidden_size * half
