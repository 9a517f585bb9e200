"""Memory of a training step on one device, counted without compiling anything.

Counted are what a step carries (parameters, two moments, moving average: 16 bytes a parameter), the gradient (4), a bfloat16 copy of the
weights where there is one (2), layers that fsdp gathers, and what the forward pass keeps for the backward one. The last is what training
counts for itself, by tracing the blocks (`dit.model.memory`). A compiler reuses buffers and adds its own: see docs/planning.md for how far
the count is off.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, get_args

from dit.design.config import Model, RunConfig, digest
from dit.design.memory_rules import KEPT_ON_CPU, USABLE, Policy, state_bytes
from dit.design.parts import load
from dit.design.topology import MeshShape
from dit.design.unet import UNetConfig
from dit.store.environment import cache_folder
from dit.store.study import read_json, write_json
from sweeps import compiled

POLICIES: tuple[Policy, ...] = get_args(Policy)


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
    return _traced(dataclasses.replace(run.model, size="custom", ladder="custom"), run.precision, remat, tensor)


@functools.lru_cache(maxsize=4096)
def _traced(model: Model, precision: str, remat: str, tensor: int) -> int:
    """What training counts for itself, kept in the cache folder by all that it depends on: to trace anew takes a second, with JAX."""
    asked = [dataclasses.asdict(model), precision, remat, tensor, compiled.source(), compiled.versions()]
    path = cache_folder() / "kept" / f"{digest(asked, 32)}.json"
    if not path.exists():
        write_json(path, load("dit.model.memory:activation_bytes")(model, precision, remat, tensor))
    return int(read_json(path))
