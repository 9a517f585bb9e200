"""What training's choice of a rematerialisation and the plan's count of memory share: the bytes of a state, and the limits (no JAX)."""

from __future__ import annotations

from typing import Literal

from dit.design import flops
from dit.design.config import RunConfig
from dit.design.topology import MeshShape

Policy = Literal["none", "dots", "full"]

CARRIED = 4 * 4
"""Bytes of a parameter, its two moments and its average, which a step hands to the next."""
STATE_BYTES = CARRIED + 4
"""The same with the gradient, in float32."""
GATHERED = 4
"""Copies of a block's weights that are whole on a device under fsdp: of the block under way and of the next, and both their gradients."""
USABLE = 0.9
"""Share of a device's memory that a count may reach: the rest is for the compiler's own buffers and fragmentation."""
KEPT_ON_CPU = 2**28
"""Bytes of activations that a CPU keeps at most: to write and read more of them takes longer than to compute them again."""


def state_bytes(run: RunConfig, shape: MeshShape) -> int:
    """What one device holds of parameters, moments, average and gradient, and of the weights in bfloat16 where they are; fsdp and tensor
    split them, and fsdp gathers layers again."""
    half = run.precision == "bfloat16"
    split = flops.params(run.model) * (STATE_BYTES + 2 * half) // (shape.fsdp * shape.tensor)
    gathered = GATHERED * flops.block_params(run.model) * (2 if half else 4) // shape.tensor
    return split + gathered * (shape.fsdp > 1)
