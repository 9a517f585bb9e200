"""The format that `torch.save` wrote before PyTorch 1.6, without PyTorch and without running anything the file says.

The published FID Inception weights date from then. Such a file is five pickles (a magic number, the protocol, the writer's word sizes,
the object, the list of storage keys), then each storage as an int64 count and its raw values. The object names its tensors by storage
before the values come, so tensors are built in a second pass. Format: PyTorch's `torch/serialization.py`, `_legacy_save`.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from dit.errors import UserError
from dit.weights.torch_records import Load, Record, Storage, unpickle

MAGIC = 0x1950A86A20F9469CFC6C
HEAD = b"\x80\x02\x8a\n" + MAGIC.to_bytes(10, "little") + b"."
"""How every such file starts: the magic number, pickled."""


def is_legacy(path: Path) -> bool:
    """Whether the file starts as one of that format."""
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Tensor name -> array of such a file, as `dit.weights.torch_pickle.read_state_dict` gives them of either format."""
    from dit.weights import torch_pickle  # which reads this format through `read_tree`

    return torch_pickle.read_state_dict(path)


def read_tree(path: Path) -> tuple[Any, Load]:
    """The object saved, with records for its tensors, and what reads their storages.

    Raises:
        UserError: if a storage does not lie in the file.
        Exception: anything at all, for a damaged pickle.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for _ in ("magic", "protocol", "word sizes"):
            unpickle(view)  # a memory map never reads past its end
        tree, keys = unpickle(view), unpickle(view)
        at, size = view.tell(), len(view)
    itemsizes = {storage.key: storage.dtype.itemsize for storage in _storages(tree)}
    places: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        for key in map(str, keys):
            file.seek(at)
            count = int.from_bytes(file.read(8), "little", signed=True)
            places[key] = (at + 8, count)
            at += 8 + count * itemsizes[key]
            if count < 0 or at > size:
                raise UserError("is damaged: it ends within a storage")

    def load(storage: Storage) -> np.ndarray:
        start, count = places[storage.key]
        if count < storage.count:
            raise UserError(f"is damaged: storage {storage.key} has {count} numbers, expected {storage.count}")
        return np.fromfile(path, storage.dtype, storage.count, offset=start)

    return tree, load


def _storages(tree: Any) -> list[Storage]:
    """Every storage that a tree refers to; each part is visited once, however often it is shared."""
    found, waiting, seen = [], [tree], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Storage):
            found.append(value)
        elif id(value) not in seen and isinstance(value, dict | list | tuple | set | Record):
            seen.add(id(value))
            if isinstance(value, Record):
                waiting += [value.args, value.state, value.entries]
            else:
                waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
    return found
