"""Tensors out of PyTorch's `.pt`, `.pth` and `.bin` files, without PyTorch and without running anything the file says.

A file written by `torch.save` since PyTorch 1.6 is a zip archive: `<name>/data.pkl` describes the tensors, `<name>/data/<key>` holds the
raw bytes of each storage. The pickle may name any Python function, which is why loading one from a stranger is dangerous; here only
the short list in `_allowed` resolves, each name to a stand-in of this module, and any other name is an error.
Format reference: PyTorch's `torch/serialization.py` notes and Python's `pickletools`.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dit.errors import UserError

_STORAGE_DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Where a checkpoint keeps several sets of weights: the exponential average first, as the reference sampler takes it.
_NESTED_KEYS = ("ema", "state_dict", "model")
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_pickle(path: str | Path) -> Any:
    """The object saved in a `.pt` file: dictionaries, lists and numbers as they are, every tensor a NumPy array.

    Raises UserError for a file that is missing, damaged, in the format of before PyTorch 1.6, or that names anything but tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if not zipfile.is_zipfile(path):
            raise UserError(_not_a_zip(path, head))
        with zipfile.ZipFile(path) as archive:
            return _TensorUnpickler(path, archive).read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged ({error}); copy or download it again") from error


def read_state_dict(path: str | Path, key: str | None = None) -> dict[str, np.ndarray]:
    """Tensor name -> array from a `.pt` file that is a state dict, or a checkpoint that holds one under `key`.

    Without `key`, a checkpoint of several parts gives its `ema`, else its `state_dict`, else its `model`.
    """
    saved = read_pickle(path)
    if not isinstance(saved, Mapping):
        raise UserError(f"{path} holds a {type(saved).__name__}; expected a dictionary of tensors")
    nested = [name for name, value in saved.items() if isinstance(value, Mapping)]
    if key is None:
        key = next((name for name in _NESTED_KEYS if name in nested), None)
    if key is not None:
        if key not in nested:
            raise UserError(f"{path} has no state dict '{key}'; it holds {', '.join(map(str, list(saved)[:8]))}")
        saved = saved[key]
    wrong = next((name for name, value in saved.items() if not isinstance(value, np.ndarray)), None)
    if wrong is not None:
        raise UserError(
            f"{path}: entry '{wrong}' is a {type(saved[wrong]).__name__}; expected only tensors in a state dict"
        )
    if not saved:
        raise UserError(f"{path} holds no tensors")
    return {str(name): value for name, value in saved.items()}


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensor name -> array from a `.safetensors` file or from PyTorch's `.pt`, `.pth`, `.bin` (see `read_state_dict`)."""
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return read_state_dict(path)
    if path.suffix != ".safetensors":
        raise UserError(f"cannot tell what {path} is; expected a name ending in .safetensors, .pt, .pth or .bin")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error


def _not_a_zip(path: Path, head: bytes) -> str:
    if head.startswith(_LEGACY_MAGIC) or head[257:262] == b"ustar":
        return (
            f"{path} is in PyTorch's format of before 1.6, which is not read here; "
            "convert it once with torch.save(torch.load(path, weights_only=True), new_path)"
        )
    if head.startswith(b"PK"):
        return f"{path} is cut short (it starts like a zip archive but has no end); copy or download it again"
    return f"{path} is not a PyTorch file; expected the zip archive that torch.save writes"


@dataclass(frozen=True)
class _Storage:
    """A flat run of numbers that tensors are views of."""

    values: np.ndarray


class _Function:
    """An allowed callable. The pickle can set attributes on what it names, so it gets this shell and never the function itself."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """A contiguous copy of the view (offset, size, stride), in elements, of a storage; the view must lie inside it."""
    numbers = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or len(size) != len(stride):
        raise UserError("a tensor in the file has no storage or a stride that does not fit its size")
    if not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise UserError(f"a tensor in the file has the impossible size {tuple(size)} and stride {tuple(stride)}")
    flat = storage.values
    if 0 in size:
        return np.empty(size, flat.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    # An expanded tensor repeats elements by stride 0; without a bound a file of a few bytes could ask for all the memory there is.
    if last >= flat.size or np.prod(size, dtype=float) > max(flat.size, 2**20):
        raise UserError(
            f"a tensor of size {tuple(size)}, stride {tuple(stride)} reaches outside its storage of {flat.size}"
        )
    strides = [step * flat.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(flat[offset:], size, strides, writeable=False).copy()


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles `data.pkl`, resolving the names of `_allowed` only, and storages to the archive's members."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        members = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(members) != 1:
            raise UserError(f"{path} is a zip archive but not one of torch.save: it has no data.pkl")
        super().__init__(archive.open(members[0]), encoding="utf-8")
        self._path, self._archive, self._root = path, archive, members[0].removesuffix("data.pkl")
        self._storages: dict[str, _Storage] = {}
        order = f"{self._root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UserError(f"{path} was written on a big-endian machine, which is not read here")
        self._namespace = type("Namespace", (), {})
        self._allowed: dict[str, Any] = {
            "collections.OrderedDict": collections.OrderedDict,
            "torch._utils._rebuild_tensor_v2": _Function(_rebuild_tensor),
            "torch._utils._rebuild_parameter": _Function(_rebuild_parameter),
            # Training scripts save their command line beside the weights; it becomes a plain record without behaviour.
            "argparse.Namespace": self._namespace,
            **{f"torch.{name}": name for name in _STORAGE_DTYPES},
        }

    def read(self) -> Any:
        try:
            return self._plain(self.load())
        except (UserError, zipfile.BadZipFile, MemoryError):
            raise
        except Exception as error:  # A hostile or damaged pickle can make the interpreter raise anything at all.
            raise UserError(f"{self._path} is damaged: its list of tensors cannot be read ({error!r})") from error

    def find_class(self, module: str, name: str) -> Any:
        found = self._allowed.get(f"{module}.{name}")
        if found is None:
            raise UserError(
                f"{self._path} asks to run {module}.{name}, which is not a tensor; refused, because a pickle can run any code. "
                "Save only the state dict (torch.save(model.state_dict(), path)), or use .safetensors"
            )
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _location, numel = pid
        if kind != "storage" or storage not in _STORAGE_DTYPES:
            raise UserError(f"{self._path} refers to {kind!r} {storage!r}; expected only tensor storages")
        if key not in self._storages:
            dtype = np.dtype(_STORAGE_DTYPES[storage])
            member = f"{self._root}data/{key}"
            try:
                size = self._archive.getinfo(member).file_size
            except KeyError:
                raise UserError(f"{self._path} is damaged: the storage {member} is missing") from None
            if size != numel * dtype.itemsize:
                raise UserError(
                    f"{self._path} is damaged: {member} has {size} bytes, expected {numel * dtype.itemsize}"
                )
            self._storages[key] = _Storage(np.frombuffer(self._archive.read(member), dtype))
        return self._storages[key]

    def _plain(self, value: Any) -> Any:
        """`value` with records and ordered dictionaries turned into plain ones."""
        if isinstance(value, self._namespace):
            return self._plain(vars(value))
        if isinstance(value, dict):
            return {name: self._plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._plain(item) for item in value)
        return value
