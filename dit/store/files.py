"""How every file of the tree is written, and every record read.

A file is written beside its place, synced, renamed over it if the fence lets it, and its folder synced: whoever looks, now or after a
power cut, finds the old file or the new one, whole. A record is a JSON dictionary whose last entry, `digest`, is the SHA-256 of the
rest as canonical JSON, in which floats are exact. It is checked at each reading; a record without one, as earlier versions wrote
them, is read too. What is read is a plain file of bounded size, depth and numbers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dit.design.config import digest
from dit.errors import UserError
from dit.store.paths import open_regular, refuse_links

SCHEMA_VERSION = 1
MOST_BYTES, MOST_DEPTH, MOST_DIGITS = 2**26, 64, 20
DIGEST, KIND = "digest", "sha256:"
NO_DIGEST = "no digest: written by an earlier version"

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}")

NUMBER = (int, float)
"""The kinds of a finite number; a boolean is none."""

Kinds = type | tuple[type, ...]
Fence = Callable[[], None]
"""Raises `dit.store.lease.LeaseLost` if this process may not write to the run any more."""


def no_fence() -> None:
    """The fence of files that only one process ever writes."""


@contextlib.contextmanager
def whole(path: Path, fence: Fence = no_fence) -> Iterator[Path]:
    """A place beside `path` to write a file or a folder to; on leaving it is synced and renamed over `path`, on an error removed.

    Raises:
        UserError: for a link on the way from a study's folder to `path`.
    """
    refuse_links(path)
    if not path.parent.is_dir():
        fence()  # a folder that was taken away is not made again by whoever has lost it
        make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield beside
        put(beside, path, fence)
    except BaseException:
        remove(beside)
        raise


def put(beside: Path, path: Path, fence: Fence = no_fence) -> None:
    """Sync a finished file or folder, and everything in it, and give it its name if the fence lets it."""
    for folder, _, names in os.walk(beside):
        for name in [*names, "."]:
            sync(Path(folder, name))
    if not beside.is_dir():
        sync(beside)
    fence()
    os.replace(beside, path)
    sync(path.parent)


def leftovers(folder: Path) -> list[Path]:
    """What writers that were killed have left in the folder and in those directly in it."""
    return [path for pattern in (".*", "*/.*") for path in folder.glob(pattern) if _LEFTOVER.fullmatch(path.name)]


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that they survive a power cut."""
    for place in reversed([folder, *folder.parents]):
        if not place.is_dir():
            place.mkdir(exist_ok=True)
            sync(place.parent)


def write_bytes(path: Path, data: bytes, fence: Fence = no_fence) -> None:
    """Write the bytes whole or not at all."""
    for again in (True, False):
        try:
            with whole(path, fence) as beside, open(beside, "wb") as file:
                file.write(data)
            return
        except FileNotFoundError:  # whoever claimed the run meanwhile took it for what a killed writer left, once
            if not (again and path.parent.is_dir()):
                raise


def write_text(path: Path, text: str) -> None:
    """Write the text whole or not at all, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, fence: Fence = no_fence) -> None:
    """Write `value` whole or not at all; a dictionary is a record and carries its digest."""
    write_bytes(path, record_bytes(value), fence)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (error.errno == errno.EINVAL and path.is_dir()):  # some network disks have no such thing for folders
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there and storage answers; on the way out of an error."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            os.unlink(path)


def remedy(error: OSError) -> str:
    """What helps against what storage refused."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n)"
    return "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"


def record_bytes(value: Any) -> bytes:
    """A value as the bytes of its file."""
    text = json.dumps(value, indent=1, allow_nan=False)
    if isinstance(value, dict):
        rest = {name: one for name, one in json.loads(text).items() if name != DIGEST}
        text = json.dumps({**rest, DIGEST: KIND + digest(rest, 64)}, indent=1)
    return text.encode() + b"\n"


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a plain file.

    Raises:
        UserError: if it is a folder, a pipe or a device, or has more than `most` bytes.
        OSError: if it is not there, or storage does not answer.
    """
    with open_regular(path) as file:
        data = file.read() if os.fstat(file.fileno()).st_size <= most else bytes(most + 1)
    if len(data) > most:
        raise UserError(f"{path} has more than {most:,} bytes: no record is so large, restore it from a copy")
    return data


def parse_record(data: bytes, source: str, newest: int = SCHEMA_VERSION) -> tuple[Any, bool]:
    """The value in a record's bytes, and whether a digest vouches for it.

    Raises:
        UserError: naming `source`, if it is no JSON within bounds, is not what was written, or is of a newer schema.
    """
    try:
        value = json.loads(data.decode(), parse_constant=_number, parse_float=_number, parse_int=_whole)
        _require_flat(value)
    except (ValueError, RecursionError) as error:  # not JSON, or not even text
        said = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(
            f"{source} is not readable as JSON ({said}): restore it from a copy, or delete it to start over"
        ) from error
    if not isinstance(value, dict):
        return value, False
    told = value.get(DIGEST)
    vouched = DIGEST in value or any(isinstance(one, str) and one.startswith(KIND) for one in value.values())
    if vouched:
        value.pop(DIGEST, None)
        if told != KIND + digest(value, 64):
            raise UserError(
                f"{source} has changed since it was written: restore it from a copy (or, if you edited it, take out "
                f'its entry "{DIGEST}")'
            )
    version = value.get("schema_version", SCHEMA_VERSION)
    if type(version) is not int or version > newest:
        raise UserError(
            f"{source} has schema version {str(version)[:60]}, this version reads up to {newest}: upgrade dit-scaling"
        )
    return value, vouched


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:20]}... has {len(text)} digits")
    return int(text)


def _require_flat(value: Any) -> None:
    level = [value] if type(value) in (dict, list) else []
    for _ in range(MOST_DEPTH):
        level = [one for each in level for one in (each.values() if type(each) is dict else each)]
        level = [one for one in level if type(one) in (dict, list)]
        if not level:
            return
    raise RecursionError


def read_json(path: Path) -> Any:
    """The value in a file that `write_json` wrote, without its digest.

    Raises:
        UserError: as `read_bytes` and `parse_record` do.
    """
    return read_vouched(path)[0]


def read_vouched(path: Path, newest: int = SCHEMA_VERSION) -> tuple[Any, bool]:
    """As `read_json` of a file of schema `newest` at most, and whether the file has a digest."""
    return parse_record(read_bytes(path), str(path), newest)


def read_record(path: Path, optional: dict[str, Kinds] | None = None, **fields: Kinds) -> dict[str, Any]:
    """The dictionary in a file that `write_json` wrote, with at least these fields, of these kinds.

    Those of `optional` may be missing or null.

    Raises:
        UserError: as `read_json` does, or naming the first field that is missing or of another kind.
    """
    return require_fields(read_json(path), path, optional, **fields)


def require_fields(value: Any, path: Path, optional: dict[str, Kinds] | None = None, **fields: Kinds) -> dict[str, Any]:
    """The value of a file, if it is a dictionary with these fields; raises as `read_record` does."""
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a dictionary: restore it from a copy")
    for name, kinds in {**fields, **(optional or {})}.items():
        one = value.get(name)
        if (not isinstance(one, kinds) or isinstance(one, bool)) and not (one is None and name not in fields):
            kind = "number" if kinds is NUMBER else getattr(kinds, "__name__", "value")
            raise UserError(f"{path} has {name} {str(one)[:60]!r}, expected a {kind}: restore the file from a copy")
    return value
