"""What loss and FID to expect of a cell at a training step, from the field's numbers (`analysis.field`), with a band and its sources.

FID (50,000 samples, no guidance): each implementation's points, joined in log step and log FID; their geometric mean. The band is
that of one more implementation: 5 % each, 95 %. Outside the published steps the slope of the nearest part of XL/2's curve goes on,
a third of the change is added to the band, and beyond a decade nothing is said.
Loss (simple loss plus variational bound, mean of a tenth of the steps): no log of a DiT is public, but DiCo's four are, of the same
loss, data, batch and rate. A model is given the loss that a DiCo of its FID after 400K steps has (lines in log FID and log step): a
DiT's is then 1 to 2 % above that of the DiCo of its name. Band 1.5 %, and 4 % more for each factor of e beyond DiCo's range of FID:
for S/8, whose loss the authors told in words (DiT's thread 17), the rule is 4.5 % low at a distance of 1.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from analysis import field
from analysis.compare import IMPLEMENTATIONS
from analysis.protocols import TRAINING_LOSS
from dit.design.rows import VARIANT, Row
from dit.errors import UserError

READ, INTERPOLATED, EXTRAPOLATED, NOTHING = "read", "interpolated", "extrapolated", "nothing known"
METRICS = ("fid", TRAINING_LOSS)
CELL = ("block", "size", "patch_size", "image_size")
_ANCHOR = 400_000
_SIGMAS = 1.96
_THIRD = 1 / 3
_LIKENESS, _BEYOND = 0.015, 0.04
_LOGGED, _IN_WORDS = 0.01, 0.03
_ONE_VALUE = "a single logged value, the mean of 100 steps, strays 1 % more"

Curve = dict[int, float]


@dataclass(frozen=True)
class Expected:
    """What to expect of a score: None where nothing is known; `said` tells from what, or why not."""

    metric: str
    step: int
    expected: float | None
    low: float | None
    high: float | None
    how: str
    source: str
    said: str


def expect(block: str, size: str, patch_size: int, step: int, image_size: int = 256) -> list[Expected]:
    """FID and training loss of a cell at a step.

    Raises:
        UserError: for a step below 1, or a block that nobody published.
    """
    if step < 1:
        raise UserError(f"step {step}: expected a whole number above 0")
    rows = [row for row in field.rows() if row.get("block") is not None]
    blocks = list(dict.fromkeys(str(row["block"]) for row in rows))
    if block not in blocks:
        raise UserError(f"nothing is published of block '{block}': expected one of {', '.join(blocks)}")
    plain = next(row[VARIANT] for row in rows if row["block"] == block)
    ours = [row for row in rows if row["block"] == block and row[VARIANT] == plain and row["step"]]
    cell = [row for row in ours if tuple(row[name] for name in CELL) == (block, size, patch_size, image_size)]
    fids = _curves(_unguided(cell), "fid")
    published = ", ".join(dict.fromkeys(f"{row['size']}/{row['patch_size']}" for row in _unguided(ours)))
    name = f"{block} {size}/{patch_size} at {image_size} px"
    if not fids and not any(TRAINING_LOSS in row for row in cell):
        said = f"nobody published {name}; of this block there are {published}"
        return [Expected(metric, step, None, None, None, NOTHING, "", said) for metric in METRICS]
    return [_fid(fids, step), _loss(cell, fids, step)]


def _unguided(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.get("fid") and row["guidance"] == "none" and row["num_samples"] == 50_000]


def _curves(rows: Iterable[Row], metric: str) -> dict[str, Curve]:
    """Scores by step of each source, the geometric mean where it printed several."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        found.setdefault(row["source"], {}).setdefault(row["step"], []).append(row[metric])
    return {
        source: {step: float(np.exp(np.log(values).mean())) for step, values in sorted(steps.items())}
        for source, steps in found.items()
    }


def _at(curve: Curve, step: int) -> float | None:
    """A curve's value at a step by a line in log step and log score; None outside."""
    steps = list(curve)
    if not steps[0] <= step <= steps[-1]:
        return None
    return float(np.exp(np.interp(math.log(step), np.log(steps), np.log(list(curve.values())))))


def _fid(curves: Mapping[str, Curve], step: int) -> Expected:
    if not curves:
        return Expected("fid", step, None, None, None, NOTHING, "", "nobody published a FID of it without guidance")
    covering = {source: value for source, curve in curves.items() if (value := _at(curve, step)) is not None}
    spread = f"{100 * IMPLEMENTATIONS:g} % between implementations"
    if covering:
        how = READ if any(step in curves[source] for source in covering) else INTERPOLATED
        sd = IMPLEMENTATIONS * math.sqrt(1 + 1 / len(covering))
        return _expected("fid", step, _mean(covering.values()), sd, how, covering, f"{spread}, 95 %")
    steps = sorted({one for curve in curves.values() for one in curve})
    nearest = min(steps, key=lambda one: abs(math.log(one / step)))
    base = {source: curve[nearest] for source, curve in curves.items() if nearest in curve}
    distance = math.log(step / nearest)
    if abs(distance) > math.log(10):
        said = f"the nearest published step is {nearest:,} (FID {_mean(base.values()):.4g}), more than a decade away"
        return Expected("fid", step, None, None, None, NOTHING, ", ".join(base), said)
    slope = _slope(nearest)
    sd = math.hypot(IMPLEMENTATIONS * math.sqrt(1 + 1 / len(base)), _THIRD * slope * distance)
    said = (
        f"from FID {_mean(base.values()):.4g} at step {nearest:,} by XL/2's slope there, step^{slope:.2f} (muP-DiT's curve): a third of "
        f"that change and {spread}, 95 %"
    )
    return _expected("fid", step, _mean(base.values()) * math.exp(slope * distance), sd, EXTRAPOLATED, base, said)


def _slope(step: int) -> float:
    """d log FID / d log step of XL/2 in the published interval nearest to a step."""
    rows = [row for row in field.rows() if row["source"] == "muP-DiT" and row[VARIANT] == field.DIT]
    steps, fids = np.log([[row["step"], row["fid"]] for row in rows]).T
    middles = (steps[1:] + steps[:-1]) / 2
    at = int(np.argmin(np.abs(middles - math.log(step))))
    return float(np.diff(fids)[at] / np.diff(steps)[at])


def _loss(cell: list[Row], fids: Mapping[str, Curve], step: int) -> Expected:
    """From what was told or logged of the cell itself; else from the DiCo of its FID."""
    told = [row for row in cell if TRAINING_LOSS in row]
    for source, curve in _curves(told, TRAINING_LOSS).items():
        value = _at(curve, step)
        if value is not None:
            in_words = told[0]["reading"].startswith("about")
            said = f"{'told in words' if in_words else 'from logs'} ({told[0]['citation']}); {_ONE_VALUE}"
            sd = (_IN_WORDS if in_words else _LOGGED) / _SIGMAS
            return _expected(TRAINING_LOSS, step, value, sd, READ if step in curve else INTERPOLATED, [source], said)
    anchor = {source: value for source, curve in fids.items() if (value := _at(curve, _ANCHOR)) is not None}
    dico = [row for row in field.rows() if row["source"] == "DiCo"]
    logged = [row for row in dico if TRAINING_LOSS in row]
    logs = {
        size: {row["step"]: row[TRAINING_LOSS] for row in logged if row["size"] == size}
        for size in {row["size"] for row in logged}
    }
    first, last = min(logs["XL"]), max(logs["XL"])
    if not anchor or not first <= step <= last:
        place = "its FID after 400K steps, which places it among the public logs, is not published"
        said = f"the public logs span steps {first:,} to {last:,}" if anchor else place
        return Expected(TRAINING_LOSS, step, None, None, None, NOTHING, "", said)
    theirs = sorted((row["fid"], row["size"]) for row in dico if row.get("fid") and row["step"] == _ANCHOR)
    x, at, within = np.log([fid for fid, _ in theirs]), math.log(_mean(anchor.values())), min(step, _ANCHOR)
    y = np.array([_at(logs[size], within) for _, size in theirs])
    value = _line(x, y, at) + (_at(logs["XL"], step) or 0) - (_at(logs["XL"], within) or 0)
    beyond, later = max(0.0, at - x[-1], x[0] - at), step > _ANCHOR
    said = f"DiCo's logs, at the FID of {math.exp(at):.4g} that this cell has after 400K steps"
    said += f", a factor of {math.exp(beyond):.2g} beyond theirs" if beyond else ""
    said += ", later steps as DiCo-XL" if later else ""
    how, sd = EXTRAPOLATED if beyond or later else INTERPOLATED, (_LIKENESS + _BEYOND * beyond) / _SIGMAS
    return _expected(TRAINING_LOSS, step, value, sd, how, ["DiCo", *anchor], f"{said}; {_ONE_VALUE}")


def _line(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """The line through points in order of x, its ends taken on."""
    place = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
    return float(y[place] + (at - x[place]) * (y[place + 1] - y[place]) / (x[place + 1] - x[place]))


def _mean(values: Iterable[float]) -> float:
    return float(np.exp(np.log(list(values)).mean()))


def _expected(metric: str, step: int, value: float, sd: float, how: str, sources: Iterable[str], said: str) -> Expected:
    """With a band of relative standard deviation `sd` at 95 %."""
    factor = math.exp(_SIGMAS * sd)
    return Expected(metric, step, value, value / factor, value * factor, how, ", ".join(sources), said)
