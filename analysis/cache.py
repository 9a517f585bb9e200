"""Rows derived from a study's runs, kept beside them so that reading ten thousand runs again takes seconds.

    DIR/cache/<kind>-<n>.bin   rows of up to 256 runs, in the study's order, with the signature of the files they were made of

A pure function of the files it was made of, so it may be deleted at any time. A run is read again when the name, time of change or size
of one of its files is another than it was; a cache that is torn, damaged or of another version is made anew; where the folder cannot be
written, rows are read from the runs each time. Nothing but `analysis` reads it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.frames import Frame, frame
from dit.design.rows import Row
from dit.errors import UserError
from dit.store.files import whole
from dit.store.paths import open_regular

MAGIC = b"dit cache 4 "
"""Begins every file; the number grows when the format does, or what is derived."""
SHARD_RUNS = 256
SETTLED_S = 2.0
"""A file that changed later than this might change again within its time stamp's resolution."""

_told: set[Path] = set()


@dataclass(frozen=True)
class Shard:
    """Rows of some runs, one run after the other: `counts` of them each. A run whose signature is empty is never taken as known."""

    runs: list[str]
    signatures: list[str]
    counts: list[int]
    table: Frame


def signature(paths: Iterable[Path]) -> str:
    """What files, and the files in folders, look like from outside: names, times of change and sizes, as one hash.

    Empty if one of them changed just now, because its next change might not show.
    """
    seen: list[tuple[str, int, int]] = []
    for path in paths:
        try:
            with os.scandir(path) as entries:
                found = [(entry.name, entry.stat()) for entry in entries if not entry.name.startswith(".")]
        except NotADirectoryError:
            found = [(path.name, path.stat())]
        except FileNotFoundError:
            found = []
        seen.extend(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in found))
        seen.append(("", 0, 0))
    now = time.time_ns()
    if any(abs(now - changed) < SETTLED_S * 1e9 for _, changed, _ in seen):
        return ""
    return hashlib.blake2b(repr(seen).encode(), digest_size=16).hexdigest()


def collected(
    folder: Path,
    kind: str,
    runs: Sequence[str],
    files: Callable[[str], Iterable[Path]],
    read: Callable[[str], list[Row]],
) -> tuple[Frame, np.ndarray]:
    """The rows of all runs in order, and how many each run has.

    Args:
        folder: the study's.
        kind: what is derived; names the files.
        files: files and folders that a run's rows are made of.
        read: makes a run's rows of them; called for runs that are new or changed.
    """
    shards = []
    for number, start in enumerate(range(0, len(runs), SHARD_RUNS)):
        path = folder / "cache" / f"{kind}-{number:04d}.bin"
        names = list(runs[start : start + SHARD_RUNS])
        known = read_shard(path)
        signatures = [signature(files(name)) for name in names]
        if known is None or (known.runs, known.signatures) != (names, signatures) or "" in signatures:
            known = _updated(known, names, signatures, read)
            write_shard(path, known)
        shards.append(known)
    if not shards:
        return frame([]), np.zeros(0, int)
    tables = [shard.table for shard in shards if len(shard.table)] or [shards[0].table]
    table = pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]
    return table, np.array([count for shard in shards for count in shard.counts])


def _updated(known: Shard | None, names: list[str], signatures: list[str], read: Callable[[str], list[Row]]) -> Shard:
    """A shard of the runs, rows of the unchanged ones from the known shard."""
    places: dict[tuple[str, str], range] = {}
    kept = 0
    if known is not None:
        kept = len(known.table)
        for run, seen, stop, count in zip(
            known.runs, known.signatures, itertools.accumulate(known.counts), known.counts
        ):
            if seen:
                places[run, seen] = range(stop - count, stop)
    fresh: list[Row] = []
    order: list[range] = []
    for name, seen in zip(names, signatures):
        if (name, seen) in places:
            order.append(places[name, seen])
        else:
            rows = read(name)
            order.append(range(kept + len(fresh), kept + len(fresh) + len(rows)))
            fresh.extend(rows)
    tables = [table for table in (known.table if known else None, frame(fresh)) if table is not None and len(table)]
    table = pd.concat(tables, ignore_index=True) if tables else frame([])
    if known is not None and len(table):
        table = table.take(np.concatenate([np.asarray(one, int) for one in order])).reset_index(drop=True)
    return Shard(names, signatures, [len(one) for one in order], table)


def write_shard(path: Path, shard: Shard) -> None:
    """Write a shard whole or not at all; where that cannot be done, say so once and go on."""
    columns, arrays = [], []
    for name in shard.table.columns:
        kind, texts, parts = _encoded(shard.table[name])
        columns.append({"name": name, "kind": kind, "texts": texts, "types": [part.dtype.str for part in parts]})
        arrays.extend(parts)
    header = {"runs": shard.runs, "signatures": shard.signatures, "counts": shard.counts, "columns": columns}
    text = json.dumps(header).encode()
    pieces = [len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in arrays)]
    check = 0
    for piece in pieces:
        check = zlib.crc32(piece, check)
    try:
        with whole(path) as beside, open(beside, "wb") as file:
            file.writelines([MAGIC, check.to_bytes(4, "little"), *pieces])
    except (OSError, UserError) as error:
        if path.parent not in _told:
            _told.add(path.parent)
            reason = str(error) if isinstance(error, UserError) else error.strerror or type(error).__name__
            print(f"{path.parent} cannot be written ({reason}): every run is read each time", file=sys.stderr)


def read_shard(path: Path) -> Shard | None:
    """The shard in a file; None if there is none, or not a whole one of this version."""
    try:
        with open_regular(path) as file:
            data = memoryview(file.read())
    except (OSError, UserError):
        return None
    start = len(MAGIC) + 4
    if data[: len(MAGIC)] != MAGIC or zlib.crc32(data[start:]).to_bytes(4, "little") != data[len(MAGIC) : start]:
        return None
    stop = start + 8 + int.from_bytes(data[start : start + 8], "little")
    header = json.loads(bytes(data[start + 8 : stop]))
    length = sum(header["counts"])
    columns = {}
    for column in header["columns"]:
        parts = []
        for kind in column["types"]:
            parts.append(np.frombuffer(data, kind, length, stop))
            stop += parts[-1].nbytes
        columns[column["name"]] = _decoded(column["kind"], column["texts"], parts)
    table = pd.DataFrame(columns, index=pd.RangeIndex(length))
    return Shard(header["runs"], header["signatures"], header["counts"], table)


def _encoded(values: Frame) -> tuple[str, list | None, list[np.ndarray]]:
    """A column as arrays: numbers as they are, whole numbers with gaps and a mask, all else as codes of distinct values."""
    if values.dtype == "Int64":
        return "whole", None, [values.to_numpy("int64", na_value=0), values.isna().to_numpy()]
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "fiub":
        return "number", None, [values.to_numpy()]
    try:
        codes, distinct = pd.factorize(values)
    except TypeError:  # lists and dictionaries have no hash
        codes, distinct = np.arange(len(values)), values
    return "text", list(distinct), [codes.astype(np.int32)]


def _decoded(kind: str, texts: list | None, parts: list[np.ndarray]) -> Frame:
    """The column that `_encoded` took apart."""
    if kind == "number":
        return parts[0]
    if kind == "whole":
        return pd.arrays.IntegerArray(parts[0].copy(), parts[1].copy())
    distinct = pd.Series([*(texts or []), None])
    return distinct.take(parts[0]).array
