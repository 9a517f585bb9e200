"""State dicts in the format that `torch.save` wrote before PyTorch 1.6, without PyTorch and without running anything the file says.

The published FID Inception weights date from then. Such a file is five pickles (a magic number, the protocol, the writer's word sizes,
the object, the list of storage keys), then each storage as an int64 count and its raw values. The object names its tensors by storage
before the values come, so tensors are built in a second pass. Format: PyTorch's `torch/serialization.py`, `_legacy_save`.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dit.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
HEAD = b"\x80\x02\x8a\n" + MAGIC.to_bytes(10, "little") + b"."
"""How every such file starts: the magic number, pickled."""

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
}


@dataclass(frozen=True)
class _Tensor:
    """A view that waits for its storage."""

    key: str
    dtype: np.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Rebuild:
    """Stands for `torch._utils._rebuild_tensor_v2`; without attributes, so that a pickle can set none."""

    __slots__ = ()

    def __call__(self, storage: tuple[str, np.dtype], offset: int, size: tuple, stride: tuple, *_: Any) -> _Tensor:
        return _Tensor(*storage, offset, tuple(size), tuple(stride))


class _Unpickler(pickle.Unpickler):
    """Resolves an ordered dictionary, tensors and four kinds of storage; any other name is an error."""

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(file, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild()
        if module == "torch" and name in _DTYPES:
            return name
        raise UserError(
            f"{self._path} asks to run {module}.{name}, which is not a tensor; refused, because a pickle can run any code"
        )

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype]:
        kind, storage, key, _location, _numel, view = pid
        if kind != "storage" or storage not in _DTYPES or view is not None:
            raise UserError(f"{self._path} refers to {kind!r} {storage!r}; expected only whole tensor storages")
        return key, _DTYPES[storage]


def is_legacy(path: Path) -> bool:
    """Whether the file starts as one of that format."""
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Tensor name -> array.

    Raises:
        UserError: if the file is damaged, holds anything but tensors by name, or names anything else to run.
    """
    try:
        with path.open("rb") as file:
            for _ in ("magic", "protocol", "word sizes"):
                _Unpickler(file, path).load()
            tensors = _Unpickler(file, path).load()
            keys = _Unpickler(file, path).load()
            if not isinstance(tensors, Mapping) or not all(isinstance(value, _Tensor) for value in tensors.values()):
                raise UserError(f"{path} does not hold a state dict: expected tensors by name, save model.state_dict()")
            dtypes = {tensor.key: tensor.dtype for tensor in tensors.values()}
            storages = {key: _storage(file, dtypes[key]) for key in keys}
        return {str(name): _view(storages[tensor.key], tensor) for name, tensor in tensors.items()}
    except (UserError, OSError):
        raise
    except Exception as error:  # a damaged or hostile pickle can make the interpreter raise anything at all
        raise UserError(f"{path} is damaged ({error!r}): copy or download it again") from error


def _storage(file: BinaryIO, dtype: np.dtype) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little", signed=True)
    values = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    if len(values) != count:
        raise ValueError("it ends within a storage")
    return values


def _view(storage: np.ndarray, tensor: _Tensor) -> np.ndarray:
    if min((*tensor.size, *tensor.stride, tensor.offset), default=0) < 0 or len(tensor.size) != len(tensor.stride):
        raise ValueError(f"a tensor of size {tensor.size} and stride {tensor.stride}")
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.size, tensor.stride))
    if last >= len(storage) or np.prod(tensor.size, dtype=float) > len(storage):
        raise ValueError(f"a tensor of size {tensor.size} reaches outside its storage of {len(storage)}")
    strides = [stride * storage.itemsize for stride in tensor.stride]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.size, strides).copy()
