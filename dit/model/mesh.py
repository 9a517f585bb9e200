"""Devices as a mesh of (data, fsdp, tensor), and where every array of a training run lives on it.

- `data` splits the batch; each of its parts holds all parameters.
- `fsdp` splits the batch too, and every large parameter, its moments and its average along one dimension (ZeRO's third stage).
- `tensor` splits heads and hidden channels (Megatron's columns and rows).

JAX's compiler inserts the communication. The axes of a parameter stand beside it, where `dit.model.layers.linear` makes it; moments and
averages, which repeat the parameters' tree, repeat them. What has none, and a dimension that an axis does not divide, stays whole.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int32, PyTree

from dit.design.config import Model
from dit.design.topology import AXES, MeshShape, parse_mesh
from dit.design.unet import UNetConfig
from dit.errors import UserError
from dit.model.compute import BATCH_AXES
from dit.model.layers import PLACES, Axes


def make_mesh(text: str = "", devices: list[Any] | None = None) -> Mesh | None:
    """The mesh that `text` asks for (see `parse_mesh`); all devices as data if it is empty, and `None` for a single one.

    Raises:
        UserError: if it needs more devices than there are, or leaves out some of a process's.
    """
    devices = jax.devices() if devices is None else devices
    shape = parse_mesh(text) or MeshShape(data=len(devices))
    there = f"{len(devices)} {devices[0].device_kind} device{'s' * (len(devices) > 1)}"
    if shape.devices > len(devices):
        raise UserError(f"a mesh of {shape} needs {shape.devices} devices, there are {there}: ask for fewer")
    if shape.devices < len(devices) and len({device.process_index for device in devices}) > 1:
        raise UserError(f"a mesh of {shape} takes {shape.devices} of {there}, but every process must take part in it")
    if shape.devices == 1 and not text:
        return None
    # By process and number, so that a process's rows of a batch are neighbours; within a host the order makes little difference.
    chosen = sorted(devices, key=lambda device: (device.process_index, device.id))[: shape.devices]
    return jax.make_mesh(shape.sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=chosen)


def require_split(model: Model, shape: MeshShape) -> None:
    """Refuse to split over `tensor` what has no rule for it.

    Raises:
        UserError: for a U-Net.
    """
    if isinstance(model, UNetConfig) and shape.tensor > 1:
        raise UserError(f"a U-Net is not split over tensor={shape.tensor}: spread it over data and fsdp")


def mesh_shape(mesh: Mesh | AbstractMesh | None) -> MeshShape:
    """Sizes of a mesh; of one device for `None`."""
    return MeshShape(*(mesh.shape[axis] for axis in AXES)) if mesh is not None else MeshShape()


def rule(axes: Axes, shape: tuple[int, ...], sizes: MeshShape) -> PartitionSpec:
    """Places of an array's dimensions, of which the last have these axes; one that its axes do not divide stays whole."""
    axes = (None,) * (len(shape) - len(axes)) + axes  # parameters of blocks are stacked along depth
    size_of: dict[str, int] = dict(zip(AXES, sizes.sizes))

    def fits(axis: str | tuple[str, ...] | None, dim: int) -> bool:
        return dim % math.prod(size_of[each] for each in ((axis,) if isinstance(axis, str) else axis or ())) == 0

    return PartitionSpec(*(axis if fits(axis, dim) else None for axis, dim in zip(axes, shape)))


def state_sharding(abstract: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """Where every leaf of a tree of parameters, or of a training state, lives."""
    sizes = mesh_shape(mesh)

    def place(leaf: Any) -> Any:
        axes = leaf.get_metadata(PLACES, ()) if isinstance(leaf, nnx.Variable) else ()
        return jax.tree.map(lambda array: NamedSharding(mesh, rule(axes, array.shape, sizes)), leaf)

    return jax.tree.map(place, abstract, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def batch_sharding(mesh: Mesh, stacked: bool = False) -> NamedSharding:
    """Rows of a batch over data and fsdp; `stacked` batches have the steps in front."""
    return NamedSharding(mesh, PartitionSpec(*([None] if stacked else []), BATCH_AXES))


def whole(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh | None, batch_size: int) -> Int32[np.ndarray, " R"]:
    """Which rows of a global batch this process has to provide, in ascending order."""
    rows = np.arange(batch_size, dtype=np.int32)
    if mesh is None:
        return rows
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([rows[index or slice(None)] for index in places.values()]))


def put_batch(
    mesh: Mesh | None,
    batch: tuple[np.ndarray, np.ndarray],
    batch_size: int,
    stacked: bool = False,
) -> tuple[Array, Array]:
    """This process's rows of a batch as global arrays on the mesh; the transfer goes on while the host does."""
    if mesh is None:
        return jax.device_put(batch)
    sharding = batch_sharding(mesh, stacked)

    def put(local: np.ndarray) -> Array:
        shape = list(local.shape)
        shape[int(stacked)] = batch_size
        return jax.make_array_from_process_local_data(sharding, local, tuple(shape))

    images, labels = batch
    return put(images), put(labels)


def here(tree: PyTree) -> PyTree:
    """The whole of every array of a tree on this process's own devices; all processes have to call it together."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree) if isinstance(leaf, Array)):
        return tree
    mesh = next(leaf.sharding.mesh for leaf in jax.tree.leaves(tree))
    gathered = jax.jit(lambda same: same, out_shardings=whole(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), gathered)
