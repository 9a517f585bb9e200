"""Weights out of files: PyTorch's `.pt`, `.pth`, `.bin`, `.ckpt` of either format, `.safetensors`, and an index of several such files.

A file written by `torch.save` since PyTorch 1.6 is a zip archive: `<name>/data.pkl` describes the tensors, `<name>/data/<key>` holds the
raw bytes of each storage. Nothing a file says is run (`dit.weights.torch_records`). What a file declares is added up before anything
is made of it: storages fill no more than the file, which is never compressed, and tensors no more than four times that.
Format references: PyTorch's `torch/serialization.py` notes; the safetensors README.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dit.errors import UserError
from dit.store.paths import open_regular
from dit.weights import parts, torch_legacy
from dit.weights.torch_records import Load, Storage, Tensor, unpickle

TORCH = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (*TORCH, ".safetensors")
_SAFE_DTYPES: dict[str, Any] = {
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
    **{"F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8", "BOOL": np.bool_, "BF16": ml_dtypes.bfloat16},
    **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu},
    **{"F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz},
}
_LONGEST_HEADER = 100_000_000
_SPARE = 2**26


def read_pickle(path: str | Path) -> Any:
    """The object saved in a PyTorch file, with an inert record for everything in it that is not a plain value."""
    with _named(Path(path)):
        return _open(Path(path))[0]


def read_state_dict(path: str | Path, key: str | None = None) -> dict[str, np.ndarray]:
    """Tensor name -> array from a `.pt` file that is a state dict, or a checkpoint that holds one under `key` (see `read_part`)."""
    return read_part(path, (), key)[0]


def read_tensors(path: str | Path, anchors: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Tensor name -> array of the weights in a file (see `read_part`)."""
    path = Path(path)
    if path.suffix not in SUFFIXES and not is_index(path):
        raise UserError(f"cannot tell what {path} is; expected a name ending in .safetensors, .pt, .pth or .bin")
    return read_part(path, anchors)[0]


def read_part(
    path: str | Path, anchors: Sequence[str] = (), key: str | None = None
) -> tuple[dict[str, np.ndarray], parts.Part]:
    """Tensor name -> array of one part of a file, and which it is: `key`, else the averaged weights (see `dit.weights.parts.choose`).

    Raises:
        UserError: for a file that is missing, damaged, larger inside than outside, or that holds no such part.
    """
    path = Path(path)
    with _named(path):
        size = sum(regular_size(file) for file in files_of(path))
        tree, load = _open(path)
        part = parts.choose(tree, load, anchors, key, str(path))
        declared = sum(tensor.nbytes for tensor in part.tensors.values())
        if declared > 4 * size + _SPARE:
            raise UserError(
                f"declares {declared:,} bytes of tensors in a file of {size:,}: it is damaged, or made to fill memory"
            )
        tensors = {name: tensor.read() for name, tensor in part.tensors.items()}
        _refuse_quantised(tensors if anchors else {})
        return tensors, part


def _refuse_quantised(tensors: dict[str, np.ndarray]) -> None:
    """Weights are floating-point numbers; whole ones, or exponents alone, are half of some scheme whose scales are elsewhere."""
    for name, tensor in tensors.items():
        floats = tensor.dtype.kind == "f" or str(tensor.dtype).startswith(("bfloat16", "float8_e4", "float8_e5"))
        if not floats and name.endswith((".weight", ".bias")):
            raise UserError(
                f"holds tensor '{name}' as {tensor.dtype}, which is quantised: expected floating-point weights"
            )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong in reading a file, as one line that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged ({error}); copy or download it again") from error
    except UserError as error:
        message = str(error)
        raise UserError(message if str(path) in message else f"{path} {message}") from error.__cause__
    except MemoryError:
        raise
    except Exception as error:  # A hostile or damaged pickle can make its interpreter raise anything at all.
        what = f"{type(error).__name__}: {str(error)[:100]}"
        raise UserError(f"{path} is damaged: its list of tensors cannot be read ({what})") from error


def regular_size(path: Path) -> int:
    """The size of a regular file in bytes."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def is_index(path: Path) -> bool:
    """Whether a name is that of an index of several files of weights."""
    return path.suffix == ".json" and ".index" in path.name


def files_of(path: Path) -> list[Path]:
    """The files a path stands for: itself, and with an index those that it names."""
    if not is_index(path):
        return [path]
    regular_size(path)
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        wrong = next((name for name in names if Path(name).name != name or Path(name).suffix not in SUFFIXES), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not an index of weights: it has no weight_map ({type(error).__name__})") from error
    if wrong is not None:
        raise UserError(f"{path} names {wrong[:80]!r}, expected the names of files of weights beside it")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing or not names:
        raise UserError(
            f"{path} names {missing[:1] or 'no files'}, which is not beside it: copy all {len(names)} files"
        )
    return [path, *(path.parent / name for name in names)]


def weights_sha256(path: Path) -> str:
    """The hash of a file of weights; of several, over the hashes of all."""
    hashes = []
    for one in files_of(path):
        with one.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def find_weights(folder: Path, stems: Sequence[str]) -> Path | None:
    """The weights in a folder: under the first of `stems`, .safetensors before .bin, whole before parts before a variant (fp16)."""
    for stem in stems:
        for suffix in (".safetensors", ".bin"):
            tries = [folder / f"{stem}{suffix}", *sorted(folder.glob(f"{stem}{suffix}.index*.json"))]
            tries += [p for p in sorted(folder.glob(f"{stem}.*{suffix}")) if "-of-" not in p.name]
            found = next((path for path in tries if path.is_file()), None)
            if found is not None:
                return found
    return None


def _open(path: Path) -> tuple[Any, Load]:
    """What a file holds, with its tensors not yet read."""
    if is_index(path):
        whole: dict[str, Any] = {}
        for file in files_of(path)[1:]:
            tree, load = _open(file)
            whole |= parts.choose(tree, load, (), None, str(file)).tensors
        return whole, _no_storage
    if path.suffix == ".safetensors":
        return _read_safetensors(path), _no_storage
    with path.open("rb") as file:
        head = file.read(512)
    if torch_legacy.is_legacy(path):
        return torch_legacy.read_tree(path)
    if not zipfile.is_zipfile(path):
        raise UserError(_not_a_zip(path, head))
    return _read_zip(path)


def _no_storage(storage: Storage) -> np.ndarray:
    raise UserError(f"refers to storage {storage.key}, which is not there")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """A length, a JSON header of name -> dtype, shape and place, then the bytes, which the tensors fill without a gap."""
    size = regular_size(path)
    damaged = f"{path} is not a whole safetensors file"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise UserError(f"{damaged} (its header is {length:,} bytes long); copy or download it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            places = {name: (e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{damaged} (its header is {type(error).__name__}); copy or download it again") from error
    tensors, at = {}, 0
    for name, (code, shape, start, stop) in sorted(places.items(), key=lambda place: place[1][2:]):
        if code not in _SAFE_DTYPES:
            raise UserError(
                f"{path}: tensor '{name}' is of number format {code}, which is not read here: expected 8-bit floats or wider"
            )
        dtype = np.dtype(_SAFE_DTYPES[code])
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop)) and len(shape) <= 32
        if not whole or start != at or stop - start != math.prod(shape) * dtype.itemsize:
            raise UserError(
                f"{damaged} (tensor '{name}' lies at {start} to {stop}, which its shape {shape} does not fill)"
            )
        tensors[name], at = _stored(path, dtype, shape, 8 + length + start), stop
    if at != size - 8 - length:
        has = f"it has {size - 8 - length:,} bytes of tensors, its header says {at:,}"
        raise UserError(f"{damaged} ({has}); copy or download it again")
    return {name: tensors[name] for name in places}


def _stored(path: Path, dtype: np.dtype, shape: tuple[int, ...], start: int) -> Tensor:
    """A tensor whose bytes lie in a file as they are."""
    nbytes = math.prod(shape) * dtype.itemsize
    return Tensor(shape, nbytes, lambda: np.fromfile(path, np.uint8, nbytes, offset=start).view(dtype).reshape(shape))


def _not_a_zip(path: Path, head: bytes) -> str:
    if head[257:262] == b"ustar":
        return (
            f"{path} is in PyTorch's format of before 0.2, which is not read here; "
            "convert it once with torch.save(torch.load(path, weights_only=True), new_path)"
        )
    if head.startswith(b"PK"):
        return f"{path} is cut short (it starts like a zip archive but has no end); copy or download it again"
    return f"{path} is not a PyTorch file; expected the zip archive that torch.save writes"


def _read_zip(path: Path) -> tuple[Any, Load]:
    """The pickled object of an archive, and what reads its storages; each is read once."""
    archive = zipfile.ZipFile(path)  # open as long as its storages may be asked for
    members = {info.filename: info for info in archive.infolist()}
    named = [name for name in members if name.endswith("/data.pkl")]
    if len(named) != 1:
        many = f"{len(named)} of them" if named else "no data.pkl"
        raise UserError(f"{path} is a zip archive but not one of torch.save, which has one data.pkl: it has {many}")
    root = named[0].removesuffix("data.pkl")
    ours = [info for name, info in members.items() if name.startswith((named[0], f"{root}data/", f"{root}byteorder"))]
    if any(info.compress_type != zipfile.ZIP_STORED for info in ours):
        raise UserError(f"{path} is compressed, which torch.save never does: pack it again without compression")
    if sum(info.file_size for info in ours) > regular_size(path):
        raise UserError(f"{path} is damaged: its parts are larger than the file")
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise UserError(f"{path} was written on a big-endian machine, which is not read here")
    tree = unpickle(io.BytesIO(archive.read(named[0])))
    kept: dict[str, np.ndarray] = {}

    def load(storage: Storage) -> np.ndarray:
        member = f"{root}data/{storage.key}"
        if member not in members:
            raise UserError(f"{path} is damaged: the storage {member} is missing")
        expected = storage.count * storage.dtype.itemsize
        if members[member].file_size != expected:
            raise UserError(f"{path} is damaged: {member} has {members[member].file_size} bytes, expected {expected}")
        if storage.key not in kept:
            kept[storage.key] = np.frombuffer(archive.read(member), np.uint8)
        return kept[storage.key].view(storage.dtype)

    return tree, load
