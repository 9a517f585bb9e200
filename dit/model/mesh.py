"""Devices as a mesh of (data, fsdp, tensor), and where every array of a training run lives on it.

- `data` splits the batch; each of its parts holds all parameters.
- `fsdp` splits the batch too, and every large parameter, its moments and its average along one dimension (ZeRO's third stage).
- `tensor` splits heads and hidden channels (Megatron's columns and rows).

JAX's compiler inserts the communication. The rule of a parameter follows from the name of its module, so moments and averages, which
repeat the parameters' tree, follow the same rules. A dimension that an axis does not divide stays whole.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int32, PyTree

from dit.design.config import Model
from dit.design.topology import AXES, MeshShape, parse_mesh
from dit.design.unet import UNetConfig
from dit.errors import UserError
from dit.model.compute import BATCH_AXES

Axis = str | tuple[str, ...] | None
COLUMNS = ("q", "k", "v", "fc1")  # the output dimension is split over `tensor`
ROWS = ("proj", "fc2")  # the input dimension is
WHOLE = ("norm", "norm1", "norm2", "norm_cross", "q_norm", "k_norm")
UNET = ("conv", "conv1", "conv2", "embedding", "skip", "inward", "outward", "entry", "exit")
RULES: dict[tuple[str, str], tuple[Axis, ...]] = {
    **{(module, "kernel"): ("fsdp", "tensor") for module in COLUMNS},
    **{(module, "bias"): ("tensor",) for module in COLUMNS},
    **{(module, "kernel"): ("tensor", "fsdp") for module in ROWS},
    **{(module, "bias"): (None,) for module in ROWS},
    **{(module, leaf): (None,) for module in WHOLE for leaf in ("scale", "bias")},
    # A part of its 3D columns is not whole heads; `dit.model.layers.Attention` gathers the weights by heads.
    ("qkv", "kernel"): (("fsdp", "tensor"), None),
    ("qkv", "bias"): (None,),
    # Not over its columns: the six of them are cut apart at once, and XLA's partitioner then gets gradients wrong on three axes.
    ("modulation", "kernel"): (("fsdp", "tensor"), None),
    ("modulation", "bias"): (None,),
    ("patch_embedding", "kernel"): (None, "fsdp"),
    ("patch_embedding", "bias"): (None,),
    ("table", "embedding"): (None, None),  # looked up by the labels of every device
    ("linear", "kernel"): ("fsdp", None),
    ("linear", "bias"): (None,),
    # A U-Net's: along the output channels; convolutions have their window in front.
    **{(module, "kernel"): (None, "fsdp") for module in UNET},
    **{(module, "bias"): (None,) for module in UNET},
}
"""Axis of each dimension of a parameter, by its module's name and its own."""


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


def mesh_shape(mesh: Mesh | None) -> MeshShape:
    """Sizes of a mesh; of one device for `None`."""
    return MeshShape(*(mesh.shape[axis] for axis in AXES)) if mesh is not None else MeshShape()


def rule(path: str, shape: tuple[int, ...], sizes: MeshShape) -> PartitionSpec:
    """Axes of the array at a slash-separated `path` such as `params/blocks/mlp/fc1/kernel`; scalars are everywhere.

    Raises:
        KeyError: for a parameter of a module that has no rule.
    """
    if not shape:
        return PartitionSpec()
    names = path.removesuffix("/value").split("/")
    axes = RULES[names[-2], names[-1]]
    axes = (None,) * (len(shape) - len(axes)) + axes  # parameters of blocks are stacked along depth
    size_of: dict[str, int] = dict(zip(AXES, sizes.sizes))

    def fits(axis: Axis, dim: int) -> bool:
        return dim % math.prod(size_of[each] for each in ((axis,) if isinstance(axis, str) else axis or ())) == 0

    return PartitionSpec(*(axis if fits(axis, dim) else None for axis, dim in zip(axes, shape)))


def state_sharding(abstract: PyTree, mesh: Mesh) -> PyTree:
    """Where every leaf of a tree of parameters, or of a training state, lives."""
    sizes = mesh_shape(mesh)

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, rule(name, leaf.shape, sizes))

    return jax.tree_util.tree_map_with_path(place, abstract)


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
