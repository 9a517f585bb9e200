"""The rows that a run logs: a file of lines for each attempt, every row chained to the one before it.

    DIR/runs/<run>/metrics/<n>.jsonl     rows logged by attempt n: step, loss, grad_norm, images_per_s, train_gflops, chain

`chain` is the hash of the row's text and of the chain before it, which for an attempt's first row is that of the last row that an
earlier attempt had left. So a row that is altered, or rows that are missing before another, show. That none is missing at the end
is told by the run's status, whose `metrics` are the file, the rows and the chain of the last sync. A torn last line that nothing
vouches for is dropped. Rows of earlier versions have no chain; the first one after them vouches for the file as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dit.errors import UserError
from dit.store.files import Fence, make_folder, no_fence, read_bytes, sync
from dit.store.paths import open_beneath

MOST_BYTES = 2**30
CHAIN_LETTERS = 16
_CHAIN = re.compile(rb', "chain": "sha256:([0-9a-f]{16})"\}\Z')
_NUMBER = (float, int, type(None))
_MEND = "restore the file from a copy, or see `dit verify`"


class Logged(NamedTuple):
    """One attempt's rows, the chain after each of them, and whether they have one of their own."""

    path: Path
    rows: list[dict[str, Any]]
    chains: list[str]
    chained: bool


def read_metrics(run_folder: Path, end: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Rows that the attempts of one run logged, each step once (the highest attempt wins), torn last lines dropped.

    Raises:
        UserError: naming the file that is altered, or lacks rows; `end` is what the run's status says of them.
    """
    rows = {row["step"]: row for logged in attempt_rows(run_folder, end).values() for row in logged}
    return [rows[step] for step in sorted(rows)]


def attempt_rows(run_folder: Path, end: dict[str, Any] | None = None) -> dict[int, list[dict[str, Any]]]:
    """The rows of each attempt, by its number, in order; of a run that was resumed several tell of the same step."""
    return {number: logged.rows for number, logged in read_logged(run_folder, end).items()}


def read_logged(run_folder: Path, end: dict[str, Any] | None = None, last: int = sys.maxsize) -> dict[int, Logged]:
    """The file of every attempt up to `last`, checked; raises as `read_metrics` does."""
    paths = {int(path.stem): path for path in (run_folder / "metrics").glob("*.jsonl") if path.stem.isdecimal()}
    found: dict[int, Logged] = {}
    for number in sorted(one for one in paths if one <= last):
        found[number] = _read(paths[number], list(found.values()))
    if end is not None:
        _require_end(run_folder, found, end)
    return found


def _require_end(run_folder: Path, found: dict[int, Logged], end: dict[str, Any]) -> None:
    attempt, rows, chain = end.get("attempt"), end.get("rows"), end.get("chain")
    path = run_folder / "metrics" / f"{attempt:04d}.jsonl" if type(attempt) is int else run_folder / "status.json"
    if type(attempt) is not int or type(rows) is not int or rows < 1:
        raise UserError(f"{path} does not tell how many rows were logged: {_MEND}")
    chains = found[attempt].chains if attempt in found else []
    if len(chains) < rows:
        raise UserError(f"{path} has {len(chains)} of the {rows} rows that were logged: {_MEND}")
    if chains[-1 if not found[attempt].chained else rows - 1] != chain:
        raise UserError(f"{path} has changed since it was written: {_MEND}")


def _read(path: Path, before: list[Logged]) -> Logged:
    data = read_bytes(path, MOST_BYTES)
    *lines, rest = data.split(b"\n")
    if _CHAIN.search(rest):
        lines, rest = [*lines, rest], b""
    chained = any(b'"sha256:' in line or b'"chain"' in line for line in lines)
    if not chained:
        rows = list(_plain(path, [*lines, rest]))
        return Logged(path, rows, [_next("", data)] * len(rows), False)
    rows, chains = [], []
    for number, line in enumerate(lines):
        found = _CHAIN.search(line)
        text = line[: found.start()] if found else line
        told = found[1].decode() if found else ""
        if not found or not any(_next(start, text) == told for start in (chains[-1:] or _starts(before))):
            if b"\0" in line:
                break  # what a power cut left of rows that were never synced: nothing vouches for those after it either
            where = "has changed since it was written, or rows before it are missing"
            raise UserError(f"{path} line {number + 1} {where}: {_MEND}")
        rows.append(_row(path, number, text + b"}"))
        chains.append(told)
    return Logged(path, rows, chains, True)


def _starts(before: list[Logged]) -> Iterator[str]:
    """The chains that an attempt's first row may go on from, the likeliest first: another may have logged since this one looked."""
    yield from (logged.chains[-1] for logged in reversed(before) if logged.chains)
    yield ""
    yield from (chain for logged in reversed(before) for chain in reversed(logged.chains))


def _next(chain: str, text: bytes) -> str:
    return hashlib.sha256(chain.encode() + text).hexdigest()[:CHAIN_LETTERS]


def _plain(path: Path, lines: list[bytes]) -> Iterator[dict[str, Any]]:
    """Rows without a chain."""
    with contextlib.suppress(
        ValueError, RecursionError
    ):  # all at once takes half the time; else the loop finds the line
        whole = json.loads(b"[" + b",".join(filter(None, lines)) + b"]")
        if all(map(_is_row, whole)):
            yield from whole
            return
    for number, line in enumerate(lines):
        if line and (row := _row(path, number, line, last=number == len(lines) - 1)) is not None:
            yield row


def _row(path: Path, number: int, line: bytes, last: bool = False) -> Any:
    row: Any = None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        if last:
            return None  # the writer died within this line
    if not _is_row(row):
        raise UserError(
            f"{path} line {number + 1} is not a row of metrics: restore the file from a copy, or delete that line"
        )
    return row


def _is_row(row: Any) -> bool:
    """Whether the value is a row: a dictionary of plain finite values, with its step."""
    if type(row) is not dict or type(row.get("step")) is not int:
        return False
    for name, one in row.items():
        if (type(one) is float and not math.isfinite(one)) or (type(one) is int and abs(one) >= 2**63):
            return False
        if name in ("loss", "images_per_s", "train_gflops", "elapsed_s", "step_s") and type(one) not in _NUMBER:
            return False
        if type(one) in (dict, list):
            return False
    return True


class MetricsWriter:
    """Appends rows to one attempt's file, a line each, written whole in one call and synced on `sync`.

    Raises:
        UserError: if the rows of earlier attempts are not as they were written; `end` is what the run's status says of them.
    """

    def __init__(self, run_folder: Path, attempt: int, fence: Fence = no_fence, end: dict[str, Any] | None = None):
        path = run_folder / "metrics" / f"{attempt:04d}.jsonl"
        make_folder(path.parent)
        before = read_logged(run_folder, end, attempt)
        for logged in before.values():
            sync(logged.path)  # these rows are vouched for from now on
        self._chain = next((one.chains[-1] for _, one in sorted(before.items(), reverse=True) if one.chains), "")
        self._attempt, self._rows = attempt, len(before[attempt].rows) if attempt in before else 0
        self._fence = fence
        opened = open_beneath(run_folder, f"metrics/{path.name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._file = os.fdopen(opened, "ab", buffering=0)
        sync(path.parent)

    @property
    def end(self) -> dict[str, Any]:
        """The file's attempt, its rows so far and the chain after them; nothing before the first row."""
        return {"attempt": self._attempt, "rows": self._rows, "chain": self._chain} if self._rows else {}

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; it must hold `step`."""
        text = json.dumps(row, allow_nan=False).encode()[:-1]
        chain = _next(self._chain, text)
        line = text + f', "chain": "sha256:{chain}"}}\n'.encode()
        self._fence()
        written = self._file.write(line)
        if written != len(line):  # a full disk takes a part and refuses the rest
            self._file.write(line[written:])
        self._chain, self._rows = chain, self._rows + 1

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()
