"""How a model is computed: number format, attention kernel, what is kept for the backward pass, and over which devices.

Parameters, optimizer state, averages, softmax and normalisation statistics are float32 in either precision; bfloat16 is that of matrix
products and of what flows between them. Only the precision changes a result beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, assert_never

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from dit.design.config import Model, Precision
from dit.errors import UserError

Attend = Literal["plain", "heads_first", "xla", "cudnn"]
BATCH_AXES = ("data", "fsdp")
ATTENDED = "attended"
"""Name of attention's values on a CPU, which "dots" keeps there: they are small beside the weights that they took."""


@dataclass(frozen=True)
class Compute:
    """Fixed when a model is built.

    Attributes:
        remat: what the backward pass recomputes: nothing, all but the products with weights ("dots"), or whole blocks.
        attention: XLA's own lowering, cuDNN's fused kernel, heads moved beside the batch first (for CPUs), or the definition written out,
            which the others are checked against.
        unroll: blocks in one iteration of the depth scan; changes speed and compile time alone.
        mesh: with axes data, fsdp and tensor; `None` is one device.
    """

    precision: Precision = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    attention: Attend = "xla"
    unroll: int = 1
    mesh: Mesh | None = None

    @property
    def dtype(self) -> Any:
        """Of matrix products."""
        return jnp.bfloat16 if self.precision == "bfloat16" else jnp.float32

    def split(self, x: Array, *axes: str | None) -> Array:
        """Lay `x` out over the mesh: its first dimension over the batch's axes, the others along `axes`; no-op on one device.

        A dimension that its axis does not divide stays whole.
        """
        if self.mesh is None:
            return x
        named = [axis if axis and size % self.mesh.shape[axis] == 0 else None for axis, size in zip(axes, x.shape[1:])]
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(BATCH_AXES, *named)))

    def whole_but(self, x: Array, *axes: str | None) -> Array:
        """Lay `x` out along `axes` and gather it along all others, the first dimension's included."""
        assert self.mesh is not None
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))

    @property
    def tensor(self) -> int:
        """Devices that share heads and hidden channels."""
        return self.mesh.shape["tensor"] if self.mesh is not None else 1


def attend(
    kind: Attend, q: Float[Array, "B T H K"], k: Float[Array, "B M H K"], v: Float[Array, "B M H K"]
) -> Float[Array, "B T H K"]:
    """softmax(q·k / sqrt(K))·v over the M keys, softmax in float32."""
    match kind:
        case "xla" | "cudnn":
            with jax.numpy_dtype_promotion("standard"):  # JAX raises bfloat16 logits to float32 implicitly
                return jax.nn.dot_product_attention(q, k, v, implementation=kind)
        case "heads_first":
            # Both products are then plain batches of matrices; XLA on a CPU otherwise transposes the logits in the backward pass. Dividing
            # by the sum last keeps the softmax's own gradient away from the T·M weights: what autodiff derives is that of a fused kernel.
            q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
            logits = jnp.einsum("bhtk,bhmk->bhtm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
            weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
            total = jnp.sum(weights, axis=-1, keepdims=True)
            values = checkpoint_name(jnp.einsum("bhtm,bhmk->bhtk", weights.astype(v.dtype), v), ATTENDED)
            return (values.astype(jnp.float32) / total).astype(v.dtype).transpose(0, 2, 1, 3)
        case "plain":
            logits = jnp.einsum("bthk,bmhk->bhtm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
            return jnp.einsum("bhtm,bmhk->bthk", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)
        case _:
            assert_never(kind)


def best_attention(device: Any, precision: Precision, head_dim: int) -> Attend:
    """The fastest kernel that is legal.

    cuDNN's on NVIDIA from Ampere on, in half precision, for heads of a multiple of 8 up to 128 channels; heads first on a CPU; else XLA's.
    """
    if device.platform == "cpu":
        return "heads_first"
    half = precision == "bfloat16" and head_dim % 8 == 0 and head_dim <= 128
    return "cudnn" if half and device.platform == "gpu" and (_capability(device) or 0.0) >= 8.0 else "xla"


def compute_on(device: Any, precision: Precision, model: Model, mesh: Mesh | None = None) -> Compute:
    """The model on that device, or over a mesh of its like, with the fastest attention."""
    return Compute(precision, attention=best_attention(device, precision, model.head_dim), mesh=mesh)


def require_precision(precision: Precision, device: Any) -> None:
    """Refuse bfloat16 where the hardware has none. A CPU without it emulates it, slowly, and is let.

    Raises:
        UserError: on an NVIDIA GPU older than Ampere.
    """
    capability = _capability(device)
    if precision == "bfloat16" and device.platform == "gpu" and capability is not None and capability < 8.0:
        raise UserError(
            f"bfloat16 on {device.device_kind}, which has none (compute capability {capability}, 8.0 is needed): choose float32"
        )


def _capability(device: Any) -> float | None:
    """Compute capability of an NVIDIA GPU; `None` for what has none."""
    try:
        return float(device.compute_capability)
    except (AttributeError, TypeError, ValueError):
        return None


def cast_params(params: PyTree, dtype: Any) -> PyTree:
    """Parameters in the format of matrix products, but for those of the normalisations, which stay float32.

    Cast as a whole, before the blocks are scanned, a sharded parameter travels between devices in half the bytes.
    """
    if dtype == jnp.float32:
        return params

    def cast(path: tuple, leaf: Array) -> Array:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return leaf if any("norm" in name for name in names) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)
