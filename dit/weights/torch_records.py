"""What a pickle of PyTorch says, without PyTorch and without running anything it names.

A pickle may name any Python function, which is why loading one from a stranger is dangerous. Here every name becomes an inert `Record` of
the name and what it was given: nothing is looked up, imported or called. `tensor_of` knows the records that stand for tensors; all others
are extras, which stand by. Before that the pickle's steps are counted and its memo checked, so that a small file cannot ask for much.
Format reference: Python's `pickletools`; PyTorch's `torch/_utils.py` and `torch/_tensor.py`.
"""

from __future__ import annotations

import collections
import io
import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from dit.errors import UserError

DTYPES: dict[str, Any] = {
    **{f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{"complex64": "<c8", "complex128": "<c16", "bool": np.bool_, "bfloat16": ml_dtypes.bfloat16},
    **{name: getattr(ml_dtypes, name) for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")},
    **{name: getattr(ml_dtypes, name) for name in ("float8_e4m3fnuz", "float8_e5m2fnuz")},
}
"""Number formats by PyTorch's names, little-endian."""

_STORAGES = {
    **{"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"},
    **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Untyped": "uint8"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
}
_MOST_STEPS = 3_000_000
_LONGEST = 2**28
# Naming these never runs them; a file that does is no checkpoint, and is refused as a whole.
_HOSTILE_MODULES = {
    "os",
    "posix",
    "nt",
    "subprocess",
    "sys",
    "importlib",
    "runpy",
    "pty",
    "shutil",
    "socket",
    "ctypes",
    "code",
    "pip",
}
_HOSTILE_BUILTINS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "getattr",
    "setattr",
    "open",
    "input",
    "apply",
    "execfile",
}


class Record:
    """A name, what it was called with, what its state was set to and what was put into it. It does nothing."""

    name = ""
    args: tuple[Any, ...]
    state: Any
    entries: list[Any]

    def __new__(cls, *args: Any, **_: Any) -> Record:
        """Calling the stand-in of a name, or making a new object of it, keeps the arguments."""
        self = object.__new__(cls)
        self.args, self.state, self.entries = args, None, []
        return self

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *args: Any) -> Record:
        return type(self)(self, *args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries.append((key, value))

    def append(self, value: Any) -> None:
        """What a list or set of another kind is given."""
        self.entries.append(value)

    add = append

    def mapping(self) -> dict[Any, Any] | None:
        """What it holds by name: the entries of a dictionary of another kind, or the attributes of an object."""
        pairs = [entry for entry in self.entries if isinstance(entry, tuple) and len(entry) == 2]
        return dict(pairs) if pairs else self.state if isinstance(self.state, dict) else None


@dataclass(frozen=True)
class Storage:
    """A flat run of numbers in the file that tensors are views of."""

    key: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read when it is asked for, of `nbytes` bytes in memory."""

    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], np.ndarray]


Load = Callable[[Storage], np.ndarray]


class _Unpickler(pickle.Unpickler):
    """Every name is a class of its own, so that whatever a pickle does to it stays within this one reading."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        plain = "builtins" if module == "__builtin__" else module
        first, hostile = plain.split(".")[0], plain == "builtins" and name.split(".")[0] in _HOSTILE_BUILTINS
        if first in _HOSTILE_MODULES or hostile:
            raise UserError(
                f"asks to run {module}.{name}, which is not a tensor; refused, because a pickle can run any code"
            )
        return type("Named", (Record,), {"name": f"{plain}.{name}"})

    def persistent_load(self, pid: Any) -> Storage:
        kind, named, key, _location, count, *view = pid
        short = str(getattr(named, "name", named)).rpartition(".")[2].removesuffix("Storage")
        if kind != "storage" or short not in _STORAGES or any(part is not None for part in view):
            raise UserError(f"refers to {kind!r} {short!r}, expected only whole tensor storages")
        return Storage(str(key), np.dtype(DTYPES[_STORAGES[short]]), count)


def unpickle(file: io.BytesIO | mmap.mmap) -> Any:
    """The next object of a seekable stream, with a `Record` for every name in it but OrderedDict; the stream ends behind it.

    Raises:
        UserError: for a pickle that is too long, asks for what no writer writes, or names what runs programs.
        Exception: anything at all, for a damaged pickle.
    """
    start = file.tell()
    for step, (code, argument, _) in enumerate(pickletools.genops(file), 1):  # type: ignore[arg-type]  # a map reads like a file
        if step > _MOST_STEPS or file.tell() - start > _LONGEST:
            raise UserError(
                f"holds a list of more than {_MOST_STEPS:,} steps or {_LONGEST:,} bytes, expected a checkpoint's"
            )
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument is not None and int(argument) > step:
            raise UserError(f"is damaged: its list of tensors counts to {argument} at step {step}")
    stop = file.tell()
    file.seek(start)
    return _Unpickler(io.BytesIO(file.read(stop - start)), encoding="utf-8").load()


def tensor_of(value: Any, load: Load) -> Tensor | None:
    """The tensor that a record stands for, or None. Subclasses, parameters and tensors of other devices are plain ones here.

    Raises:
        UserError: for a tensor that cannot be where it says it is.
    """
    for _ in range(8):  # wrapped so many times at most
        if not isinstance(value, Record):
            return None
        kind, args = value.name.rpartition(".")[2], value.args
        if kind in ("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_device_tensor_from_cpu_tensor"):
            value = args[0]
        elif kind in ("_rebuild_from_type", "_rebuild_from_type_v2") and isinstance(args[0], type):
            value = args[0](*args[2])
        elif kind in ("_rebuild_device_tensor_from_numpy", "_rebuild_xla_tensor"):
            value = args[0]
        else:
            break
    else:
        return None
    if not value.name.startswith(("torch._utils._rebuild", "torch._tensor.", "numpy.")):
        return None
    if kind in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        dtype = DTYPES.get(args[6].name.rpartition(".")[2]) if kind == "_rebuild_tensor_v3" else None
        if kind == "_rebuild_tensor_v3" and dtype is None:
            return None
        return _view(args[0], args[1], _whole(args[2]), _whole(args[3]), dtype and np.dtype(dtype), load)
    if kind == "_rebuild_sparse_tensor":
        return _sparse(args, load)
    return _numpy(kind, value) if kind in ("_reconstruct", "_frombuffer") else None


def describe(value: Any) -> str:
    """What an entry is, in words, never its contents."""
    if isinstance(value, Record) or (isinstance(value, type) and issubclass(value, Record)):
        return f"asks to run {value.name}, which is not a tensor; refused, because a pickle can run any code"
    return f"is a {type(value).__name__}"


def _whole(value: Any) -> tuple[int, ...]:
    """A shape: a tuple, or the record of a torch.Size."""
    numbers = value.args[0] if isinstance(value, Record) and value.args else value
    if (
        not isinstance(numbers, tuple | list)
        or not all(type(n) is int and n >= 0 for n in numbers)
        or len(numbers) > 32
    ):
        raise UserError("holds a tensor of an impossible size or stride")
    return tuple(numbers)


def _view(
    storage: Any, offset: Any, size: tuple[int, ...], stride: tuple[int, ...], dtype: np.dtype | None, load: Load
) -> Tensor:
    """The view (offset, size, stride), in elements, of a storage; it must lie inside."""
    if not isinstance(storage, Storage) or len(size) != len(stride) or type(offset) is not int or offset < 0:
        raise UserError("holds a tensor of an impossible size: it has no storage, or a stride that does not fit")
    dtype = dtype or storage.dtype
    count = storage.count * storage.dtype.itemsize // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    # An expanded tensor repeats elements by stride 0; without a bound a file of a few bytes could ask for all the memory there is.
    if 0 not in size and (last >= count or math.prod(size) > max(count, 2**20)):
        raise UserError(f"holds a tensor of size {size}, stride {stride} that reaches outside its storage of {count}")

    def read() -> np.ndarray:
        if 0 in size:
            return np.empty(size, dtype)
        flat = load(storage)[: count * dtype.itemsize // storage.dtype.itemsize].view(dtype)
        if math.prod(size) == last + 1 - offset and stride == _packed(size):
            return flat[offset : last + 1].reshape(size)
        strides = [step * flat.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(flat[offset:], size, strides, writeable=False).copy()

    return Tensor(size, math.prod(size) * dtype.itemsize, read)


def _packed(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(size[axis + 1 :]) for axis in range(len(size)))


def _sparse(args: tuple[Any, ...], load: Load) -> Tensor | None:
    """A sparse tensor of coordinates, made dense."""
    layout, data = args[0], args[1]
    name = str(layout.args[0] if isinstance(layout, Record) and layout.args else getattr(layout, "name", layout))
    indices, values = (tensor_of(part, load) for part in data[:2])
    if not name.endswith("sparse_coo") or indices is None or values is None:
        return None
    size = _whole(data[2])
    if len(indices.shape) != 2 or indices.shape[0] != len(size) or values.shape != indices.shape[1:]:
        return None

    def read() -> np.ndarray:
        where, numbers = indices.read(), values.read()
        if where.size and not all(row.min() >= 0 and row.max() < n for row, n in zip(where, size)):
            raise UserError("holds a sparse tensor whose places lie outside it")
        dense = np.zeros(size, numbers.dtype)
        np.add.at(dense, tuple(where), numbers)
        return dense

    return Tensor(size, math.prod(size) * 8, read)


def _numpy(kind: str, value: Record) -> Tensor | None:
    """An array that NumPy pickled: its state, or the buffer it was made from."""
    if kind == "_frombuffer":
        data, dtype, shape, order = value.args
        fortran = order == "F"
    elif isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, fortran, data = value.state
    else:
        return None
    if isinstance(data, Record) and data.name == "_codecs.encode":
        data = data.args[0].encode(data.args[1] if data.args[1] == "latin1" else "ascii")
    code = str(dtype.args[0]) if isinstance(dtype, Record) and dtype.args else ""
    if not re.fullmatch(r"[fiub]\d{1,2}", code) or not isinstance(data, bytes | bytearray):
        return None
    big = isinstance(dtype.state, tuple) and dtype.state[1] == ">"
    numbers = np.dtype(code).newbyteorder(">" if big else "<")
    size = _whole(shape)
    if math.prod(size) * numbers.itemsize != len(data):
        raise UserError(f"holds an array of size {size} in {len(data):,} bytes")
    return Tensor(size, len(data), lambda: np.frombuffer(data, numbers).reshape(size, order="F" if fortran else "C"))
