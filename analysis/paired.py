"""What a field does to the scores: means over seeds for each value, paired differences between values, and both in sentences.

A difference is paired: runs of one cell and one seed that differ in the field alone share their seed's noise. It is the mean over cells of
the mean log ratio of scores, for the cells at hand; its interval is Student's, from the spread of the pairs within cells (pooled), or,
where every cell has one pair, from the spread of the cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analysis import protocols
from analysis.axes import Axis
from analysis.comparable import at_common_step
from analysis.compare import CONFIDENCE, Noise, half_width, standard_error
from analysis.figures.drawing import Scores, over_seeds, scores
from analysis.fits.record import Interval, Record
from analysis.frames import Frame
from analysis.results import StudyResults
from analysis.seeds import CELL, mean_and_deviation
from dit.design.blocks import block_label


@dataclass(frozen=True)
class Difference(Record):
    """Scores at `value` of a field over those at `against`, as a ratio; `interval` is None where one pair alone tells of it."""

    field: str
    value: Any
    against: Any
    metric: str
    ratio: float
    interval: Interval | None
    cells: int
    pairs: int

    @property
    def said(self) -> str:
        """The difference in a sentence."""
        words = f"{self.metric} at {self.field} {self.value} is {abs(self.ratio - 1):.1%} {_way(self.ratio)} than at {self.against}"
        paired = f"paired over {_count(self.cells, 'cell')}, {_count(self.pairs, 'pair')} of runs"
        if self.interval is None:
            return f"{words} ({paired}: no spread to judge it by)."
        low, high = self.interval.low - 1, self.interval.high - 1
        sure = "" if low * high > 0 else ", which is no difference that these runs can tell"
        return f"{words} (95 % interval {low:+.1%} to {high:+.1%}, {paired}){sure}.".replace("-", "−")


@dataclass(frozen=True)
class Effect:
    """A field's effect after one training step: the means of every cell and value, and the difference of each value to the first."""

    axis: Axis
    shown: Scores
    means: Frame
    differences: tuple[Difference, ...]

    @property
    def sentences(self) -> list[str]:
        """What came out, in words."""
        apart = _protocols_apart(self.axis, self.shown.rows)
        said = f"Scores along {self.axis.field} were taken under protocols that differ in {apart}." if apart else ""
        return [*_blocks(self), *(one.said for one in self.differences), *([said] if said else [])]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each cell, a column for each value: mean ± standard deviation (n)."""
        cell = [name for name in CELL if name != self.axis.field]
        found = []
        for key, rows in self.means.groupby(cell, sort=False):
            values = {
                self.axis.name(one[self.axis.field]): f"{mean_and_deviation(one['mean'], one['sd'])} ({one['n']})"
                for one in rows.to_dict("records")
            }
            found.append({**dict(zip(cell, key)), **values})
        return found


def effect(axis: Axis, study: StudyResults | None = None) -> Effect:
    """What the field does at the common step, under the main protocol less the parts that the field varies.

    Raises:
        Skipped: if there is no score.
        UserError: if no protocol is the main one, or runs of a cell and value differ in more than their seed.
    """
    shown = scores(study or axis.study, axis.parts)
    shown = shown.of(at_common_step(shown.rows))
    means = over_seeds(
        shown.rows, [*(name for name in CELL if name != axis.field), "gflops"], shown.metric, (axis.field,)
    )
    first, *others = [value for value in axis.values if is_value(means[axis.field], value).any()]
    return Effect(axis, shown, means, tuple(one for value in others if (one := _difference(axis, shown, value, first))))


def _difference(axis: Axis, shown: Scores, value: Any, against: Any) -> Difference | None:
    """The paired difference of two values; None where they share no cell and seed, or a score is not positive."""
    cell = [name for name in CELL if name != axis.field]
    above, below = (
        shown.rows[is_value(shown.rows[axis.field], one)].groupby([*cell, "seed"])[shown.metric].mean()
        for one in (value, against)
    )
    ratios = (above / below).dropna()
    if ratios.empty or not (above.min() > 0 and below.min() > 0):
        return None
    logs = np.log(ratios)
    cells = logs.groupby(level=cell)
    means, counts = cells.mean().to_numpy(), cells.size().to_numpy()
    mean, number, freedom = float(means.mean()), len(means), int((counts - 1).sum())
    if freedom:
        pooled = float(((logs - cells.transform("mean")) ** 2).sum()) / freedom
        error = math.sqrt(pooled * float((1 / counts).sum())) / number
    else:
        freedom, error = number - 1, float(means.std(ddof=1)) / math.sqrt(number) if number > 1 else math.inf
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error if freedom else math.inf
    interval = Interval(math.exp(mean - half), math.exp(mean + half)) if math.isfinite(half) else None
    return Difference(axis.field, value, against, shown.metric, math.exp(mean), interval, number, int(counts.sum()))


def _blocks(found: Effect) -> list[str]:
    """Which block leads at each value, at the largest cell that has two or more at every value."""
    axis = found.axis
    if axis.field in CELL:
        return []
    by_cell = found.means.groupby(["size", "patch_size"], sort=False)
    full = [
        rows
        for _, rows in by_cell
        if (rows.groupby(axis.field, dropna=False)["block"].nunique() > 1).sum() == len(axis.values)
    ]
    if not full:
        return []
    rows = max(full, key=lambda one: float(one["gflops"].max()))
    parts, leaders = [], []
    for value in axis.values:
        first, second = (
            rows[is_value(rows[axis.field], value)].sort_values("mean", kind="stable").to_dict("records")[:2]
        )
        leaders.append(block_label(first["block"]))
        named = "" if rows["block"].nunique() == 2 else f" ({block_label(second['block'])})"
        scores = [mean_and_deviation(one["mean"], one["sd"]) for one in (first, second)]
        errors = [
            standard_error(found.shown.metric, one["mean"], one["sd"], one["n"], Noise()) for one in (first, second)
        ]
        known = [error for error in errors if error is not None]
        near = len(known) == 2 and second["mean"] - first["mean"] <= half_width(known, CONFIDENCE)
        named += ", within the noise," if near else ""
        parts.append((f"{scores[0]} against {scores[1]}{named}", value))
    where = f"{rows['size'].iloc[0]}/{rows['patch_size'].iloc[0]} after {int(found.shown.rows['step'].iloc[0]):,} steps"
    if len(set(leaders)) > 1:
        told = "; ".join(f"{leader} at {value} ({text})" for leader, (text, value) in zip(leaders, parts))
        return [f"Which block leads depends on {axis.field}: {told}, {found.shown.metric} of {where}."]
    every = "both" if len(parts) == 2 else f"all {len(parts)}"
    told = ", ".join(f"{text} at {value}" for text, value in parts)
    return [f"{leaders[0]} stays ahead at {every} values of {axis.field}: {found.shown.metric} {told} ({where})."]


def is_value(column: Frame, value: Any) -> Frame:
    """Where a column holds the value; None is a gap."""
    return column.isna() if value is None else column == value


def _protocols_apart(axis: Axis, rows: Frame) -> str:
    """The parts of the protocol that differ along the axis, with what they are."""
    first, *others = [axis.study.protocols[key] for key in rows["protocol"].unique()]
    return "; ".join(dict.fromkeys(part for other in others for part in protocols.difference(first, other)))


def _way(ratio: float) -> str:
    return "lower" if ratio < 1 else "higher"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
