"""The text logs of DiT's released trainer and its descendants, as runs that `analysis.wandb_import` writes into a study's folder.

    [2023-01-01 12:00:00] (step=0000100) Train Loss: 0.1234, Train Steps/Sec: 5.67

Colour codes, carriage returns, other lines and further values between the commas do not matter. Where a run was resumed a later value of a
step wins. A value whose line was cut off is left out: what is left of 0.1234 may be 0.1. Each run is scored by its own loss, the mean over
the last tenth of the steps, at steps that runs share: 1, 2 and 4 times powers of ten.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from analysis.protocols import TRAINING_LOSS
from analysis.training_loss import WINDOW
from analysis.wandb_sources import LoggedRun
from dit.design.config import digest
from dit.errors import UserError

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PIECE = re.compile(
    r"\(step=(\d{1,15})\)[ :,]*(?:Train )?Loss: *([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))(,?)", re.IGNORECASE
)
_RATE = re.compile(r"Steps/Sec: *(\d+\.\d+)")
_MODEL = re.compile(r"[A-Za-z]+[-_](?P<size>XL|S|B|L)[-_/](?P<patch_size>\d+)(?!\d|x\d)", re.IGNORECASE)
_FEWEST = 5
"""Logged values that a mean needs; a short log is scored at its last step by what there is."""
_PROTOCOL = {"features": TRAINING_LOSS, "window_steps": None}
_KEY = digest(_PROTOCOL)
_SUFFIXES = (".txt", ".log")
GROUPS = ("block", "size", "patch_size", "batch_size", "learning_rate", "seed", "ladder", "dataset")
"""What a pattern may tell of a cell."""
DEFAULTS = {"block": "adaln_zero", "dataset": "imagenet256", "batch_size": 256, "learning_rate": 1e-4, "seed": 0}
"""What the released trainer trains unless told."""
_SIZES = ("S", "B", "L", "XL")
EXAMPLE = r"--pattern '(?P<size>XL|S|B|L)-(?P<patch_size>\d)'"


def read_logs(source: Path, pattern: str | None, stated: Mapping[str, Any]) -> list[LoggedRun]:
    """The runs in a log or in a folder of logs (*.txt, *.log, at any depth), files that go on with a run put together.

    Args:
        pattern: regular expression with named groups of `GROUPS`, searched in each file's path within the folder.
        stated: what holds for every log; it goes before what names tell.

    Raises:
        UserError: for a path without a log, a log without a step, a cell that is not told, or two logs of one cell and seed.
    """
    files = (
        [source]
        if source.is_file()
        else sorted(one for one in source.rglob("*") if one.suffix in _SUFFIXES and one.is_file())
    )
    if not files:
        raise UserError(f"no log in {source}: expected a text log of DiT's trainer, or a folder of *.txt or *.log")
    expression = _expression(pattern)
    found: dict[tuple, list[_Log]] = {}
    empty = []
    for path in files:
        name = path.relative_to(source).as_posix() if source.is_dir() else path.name
        log = _Log(name, path.read_bytes().decode("utf8", errors="replace"))
        if not log.rows:
            empty.append(name)
            continue
        cell = _cell(name if source.is_dir() else "/".join(path.absolute().parts[-2:]), expression, stated)
        found.setdefault(tuple(cell.get(one) for one in GROUPS), []).append(log)
    if not found:
        raise UserError(
            f"no training step in {source}: expected lines like '(step=0000100) Train Loss: 0.1234, Train Steps/Sec: 5.67'"
        )
    runs = [_run(dict(zip(GROUPS, cell)), logs) for cell, logs in found.items()]
    runs[0].notes.extend(f"no training step in {name}: left out" for name in empty)
    return runs


def _expression(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--pattern {pattern!r} is no regular expression: {error}") from error
    unknown = [name for name in expression.groupindex if name not in GROUPS]
    if unknown or not expression.groupindex:
        raise UserError(
            f"--pattern {pattern!r} has {f'the group {unknown[0]}' if unknown else 'no named group'}: expected some of "
            f"{', '.join(GROUPS)}, as in {EXAMPLE}"
        )
    return expression


def _cell(name: str, expression: re.Pattern[str] | None, stated: Mapping[str, Any]) -> dict[str, Any]:
    """What flags, the pattern or a name like 000-DiT-XL-2 tell of a log's cell."""
    match = None if expression is None else expression.search(name)
    if expression is not None and match is None:
        raise UserError(f"--pattern {expression.pattern!r} is not found in {name}")
    usual = list(_MODEL.finditer(name))
    told = dict(DEFAULTS) | (usual[-1].groupdict() if usual else {})
    told |= {key: value for key, value in match.groupdict().items() if value is not None} if match else {}
    told |= {key: value for key, value in stated.items() if value is not None}
    missing = [f"--{key.replace('_', '-')}" for key in ("size", "patch_size") if key not in told]
    if missing:
        raise UserError(f"log {name} does not tell its cell: give {' and '.join(missing)}, or {EXAMPLE}")
    told["size"] = str(told["size"]).upper() if str(told["size"]).upper() in _SIZES else told["size"]
    for key, kind in (("patch_size", int), ("batch_size", int), ("seed", int), ("learning_rate", float)):
        try:
            number = kind(told[key])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"log {name}: {key} is {told[key]!r}, expected a number: see --pattern")
        told[key] = number
    return told


class _Log:
    """One file: its steps with loss and rate in the order written, and how many values were cut off."""

    def __init__(self, name: str, text: str):
        self.name = name
        self.rows: list[tuple[int, float, float | None]] = []
        text = _COLOUR.sub("", text)
        self.cut = len(re.findall(r"\] \((?:s|st|ste|step)?$", text, re.MULTILINE))
        pieces = [piece for piece in re.split(r"(?=\(step=)", text) if piece.startswith("(step=")]
        matches = [(_PIECE.match(piece), piece) for piece in pieces]
        decimals = Counter(len(one[2].partition(".")[2]) for one, _ in matches if one)
        usual = decimals.most_common(1)[0][0] if decimals else 0
        followed = any(one[3] for one, _ in matches if one)
        for match, piece in matches:
            whole = match and (match[3] or (not followed and len(match[2].partition(".")[2]) >= usual))
            if match is None or not (whole or "n" in match[2].lower()):
                self.cut += 1
                continue
            rate = _RATE.search(piece)
            self.rows.append((int(match[1]), float(match[2]), float(rate[1]) if rate else None))


def _run(cell: dict[str, Any], logs: list[_Log]) -> LoggedRun:
    """One run from the logs of one cell and seed: the next goes on where the one before it stood."""
    logs = sorted(logs, key=lambda one: one.rows[0][0])
    for before, after in pairwise(logs):
        if after.rows[0][0] <= before.rows[0][0] or after.rows[0][0] > 2 * max(step for step, *_ in before.rows):
            raise UserError(
                f"logs {before.name} and {after.name} are both {cell['block']} {cell['size']}/{cell['patch_size']}, seed "
                f"{cell['seed']}, and the one does not go on with the other: tell them apart with a group in --pattern, "
                "like (?P<seed>\\d+)"
            )
    rows = [row for log in logs for row in log.rows]
    back = [(last, step) for (last, *_), (step, *_) in pairwise(rows) if step <= last]
    values = {step: (loss, rate) for step, loss, rate in rows}
    notes = []
    if len(logs) > 1:
        notes.append(f"{', '.join(log.name for log in logs)} are one run, resumed")
    if back:
        notes.append(
            f"resumed {len(back)} time(s), first from step {back[0][0]} back to {back[0][1]}: {len(rows) - len(values)} "
            "step(s) were logged more than once, the later value stays"
        )
    if cut := sum(log.cut for log in logs):
        notes.append(f"{cut} line(s) cut off: left out")
    history: list[dict[str, Any]] = []
    for step, (loss, rate) in sorted(values.items()):
        row = {"step": step, "loss": loss}
        history.append(row if rate is None else {**row, "images_per_s": rate * cell["batch_size"]})
    history += [{"step": step, TRAINING_LOSS: loss, "protocol": _KEY} for step, loss in _scores(values).items()]
    config = {name: value for name, value in cell.items() if value is not None}
    config["protocols"] = json.dumps({_KEY: _PROTOCOL})
    return LoggedRun(logs[0].name, config, history, source=f"log:{logs[0].name}", notes=notes)


def _scores(values: Mapping[int, tuple[float, float | None]]) -> dict[int, float]:
    """The mean loss over the last tenth of the steps, at the steps that runs share; at the last step if there is none of these."""
    losses = {step: loss for step, (loss, _) in values.items() if math.isfinite(loss)}
    last = max(losses, default=0)
    shared = [times * 10**power for power in range(len(str(last))) for times in (1, 2, 4) if times * 10**power <= last]
    found: dict[int, float] = {}
    for step in [*shared, last]:
        within = [loss for one, loss in losses.items() if step * (1 - WINDOW) < one <= step]
        if (len(within) >= _FEWEST and step in shared) or (within and step == last and not found):
            found[step] = sum(within) / len(within)
    return found
