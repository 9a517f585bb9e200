"""Arrays of an `.npz` read within a budget; whatever damage raises is one line. Nothing here imports JAX."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dit.errors import UserError

MOST_BYTES = 2**30
"""Of the arrays in a file."""


def read_arrays(path: Path, names: Collection[str] | None = None, limit: int = MOST_BYTES) -> dict[str, np.ndarray]:
    """Those arrays of an `.npz` that are wanted and there, once what they declare is what the file has room for.

    Raises:
        UserError: for a file that is not whole, objects, or more than `limit` bytes in all.
    """
    with reading(path), zipfile.ZipFile(path) as archive:
        wanted = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if info.filename.endswith(".npy") and (names is None or info.filename.removesuffix(".npy") in names)
        }
        total = sum(info.file_size for info in wanted.values())
        if total > limit:
            raise UserError(f"{path} declares {total:,} bytes of {', '.join(wanted)}: expected no more than {limit:,}")
        arrays = {}
        for name, info in wanted.items():
            with archive.open(info) as file:
                shape, _, dtype = read_header(file, path)
                if dtype.hasobject or not 0 <= info.file_size - math.prod(shape) * dtype.itemsize <= 2**16:
                    raise UserError(
                        f"{path}: '{name}' holds {dtype} of shape {shape} in {info.file_size:,} bytes: write it again"
                    )
            with archive.open(info) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
        return arrays


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What a damaged archive raises, as one line."""
    try:
        yield
    except UserError:  # a ValueError to some, and said already
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a whole .npz file ({' '.join(str(error).split())[:200]}): it may be cut short, copy or write it again"
        ) from error
    except (NotImplementedError, RuntimeError) as error:  # another way of compressing, or encrypted
        raise UserError(f"{path} cannot be unpacked ({error}): write it again with numpy.savez") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_header(file: Any, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype that an `.npy` stream declares; leaves the stream at the first value."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)
    except (
        ValueError,
        TypeError,
        SyntaxError,
        tokenize.TokenError,
        RecursionError,
        MemoryError,
    ) as error:  # it is Python's own syntax
        raise UserError(
            f"{path} holds an array that cannot be read ({' '.join(str(error).split())[:200]}): write it again with numpy.savez"
        ) from error
