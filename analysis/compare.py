"""Scores of a study held against the published ones, or against another study's, cell by cell, with the noise of retraining.

Two scores have a difference only where the cell, the training step and the evaluation protocol agree; otherwise what differs is named
and no number is given, unless those parts are ignored by name. What the paper leaves unsaid is taken to agree, and listed.

Noise: a model trained again from another seed moves FID by 1-2 % (coefficient of variation), at every scale (arXiv:2606.20536). A mean
over two or more seeds has its own standard error; a single run is given a coefficient of 1.3 %, as is a published score. The
band is the confidence interval of the difference (Welch's, normal where nothing was estimated); a gap inside it is not significant.
Implementations of one cell stray further than seeds do: DiT-XL/2 after 400K steps has FID 19.47 (the paper), 18.1 (its PyTorch code), 20.05
(U-DiT) and 20.42 (muP-DiT), 5 % about their mean. Against the field (`analysis.field`) each side is given that, whatever its seeds say.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from analysis import field, published
from analysis.results import StudyResults
from analysis.tables import plain
from dit.design.metrics import NOISE, is_better_higher, of_column
from dit.design.rows import COUNT, DEVIATION, VARIANT, Row, recipe, recipe_fields
from dit.errors import UserError
from dit.store.study import load_study

COV = NOISE
IMPLEMENTATIONS = 0.05
CONFIDENCE = 0.95
CELL = ("block", "size", "patch_size")
PARTS = ("image_size", "params", "batch_size", "step")
"""Columns that must agree besides the protocol."""
SCORES = ("score", "score_sd", "score_n", "against", "against_sd", "against_n")
COLUMNS = (
    *(*CELL, "step", "metric", *SCORES, "delta", "delta_percent", "band_percent", "band_from", "verdict"),
    *("differs", "unsaid", "training", "source", "against_source"),
)
NOT_COMPARABLE, NOT_SIGNIFICANT, BETTER, WORSE, NO_BAND = (
    *("not comparable", "not significant", "better", "worse", "no band"),
)
_DERIVED = ("metric", "extractor")
"""Parts of a protocol that follow from others."""


@dataclass(frozen=True)
class Noise:
    """How far a single training's Fréchet distance strays (relative standard deviation), and how sure a difference must be.

    `between`: it is the spread between implementations, which the seeds of one do not show.
    """

    cov: float = COV
    confidence: float = CONFIDENCE
    between: bool = False


@dataclass(frozen=True)
class Comparison:
    """One row for each pair of scores, and the cells of the first study that the second has none of."""

    rows: list[Row]
    unmatched: list[str]

    def count(self, verdict: str) -> int:
        """Rows of that verdict."""
        return sum(row["verdict"] == verdict for row in self.rows)


def compare(
    first: StudyResults,
    second: StudyResults,
    ignore: Collection[str] = (),
    every_step: bool = False,
    noise: Noise = Noise(),
) -> Comparison:
    """Each cell of `first` under each of its protocols, at its last step that `second` has, against the closest of `second`'s scores.

    Where `second` is the field: against the closest of each source other than the row's own, the nearest protocol first.

    Args:
        ignore: parts (columns of `PARTS`, or keys of a protocol) that may differ; the row still says that they do.
        every_step: all steps that both have, not the last alone.

    Raises:
        UserError: for an unknown part, or studies without a cell in common.
    """
    known = {*PARTS, *(key for study in (first, second) for protocol in study.protocols.values() for key in protocol)}
    for part in ignore:
        if part not in known:
            raise UserError(f"--ignore {part}: no such part; expected some of {', '.join(sorted(known))}")
    pairs = _Pairs(first, second, frozenset(ignore), noise)
    ours, theirs = first.over_seeds(), second.over_seeds()
    parts = theirs.groupby("source", sort=False) if noise.between else [("", theirs)]
    candidates = [
        (source, {key: rows.to_dict("records") for key, rows in part.groupby(list(CELL))}) for source, part in parts
    ]
    rows, unmatched = [], []
    for _, group in ours.groupby(["recipe", "protocol"], sort=False):
        cell = tuple(group[name].iloc[0] for name in CELL)
        steps = group.sort_values("step", ascending=False).to_dict("records")
        found = [
            pairs.closest(steps, cells[cell], every_step)
            for source, cells in candidates
            if cell in cells and source != steps[0]["source"]
        ]
        if not found:
            unmatched.append(f"{cell[0]} {cell[1]}/{cell[2]}")
        rows.extend(row for _, these in sorted(found, key=lambda one: one[0]) for row in these)
    if not rows:
        raise UserError(
            f"no cell of '{first.name}' is in '{second.name}': expected the same block, size and patch size, found "
            f"{', '.join(unmatched[:4])}{', ...' if len(unmatched) > 4 else ''}"
        )
    return Comparison(rows, list(dict.fromkeys(unmatched)))


class _Pairs:
    """Pairs of scores of two studies."""

    def __init__(self, first: StudyResults, second: StudyResults, ignore: frozenset[str], noise: Noise):
        self._first, self._second, self._ignore, self._noise = first, second, ignore, noise
        self._identities = (_identities(first), _identities(second))

    def closest(self, ours: list[Row], theirs: list[Row], every_step: bool) -> tuple[int, list[Row]]:
        """Rows of the pairs that differ least, and in how many parts: at every common step, or at one, the last among equals."""
        if every_step:
            steps = {other["step"] for other in theirs}
            chosen = [[row] for row in reversed(ours) if row["step"] in steps] or [ours]
        else:
            chosen = [ours]
        found, least = [], 0
        for rows in chosen:
            pairs = [(row, other, *self._differences(row, other)) for row in rows for other in theirs]
            row, other, apart, unsaid = min(pairs, key=lambda pair: (len(pair[2]), len(self._training(*pair[:2]))))
            found.extend(self._rows(row, other, apart, unsaid))
            least = max(least, len(apart))
        return least, found

    def _differences(self, row: Row, other: Row) -> tuple[dict[str, str], list[str]]:
        """What differs, by part, and what the other protocol leaves unsaid."""
        is_published = self._second.folder is None
        apart = {
            part: f"{part} {row[part]} and {other[part]}"
            for part in PARTS
            if not _agree(part, row[part], other[part], is_published)
        }
        mine, its = self._first.protocols[row["protocol"]], self._second.protocols[other["protocol"]]
        unsaid = [key for key in mine if its.get(key) is None and key not in _DERIVED] if is_published else []
        for key in {**mine, **its}:
            if key in _DERIVED or key in unsaid or (is_published and mine.get(key) is None):
                continue
            if _said(key, mine, its) != _said(key, its, mine):
                apart[key] = f"{key} {mine.get(key)} and {its.get(key)}"
        return apart, unsaid

    def _training(self, row: Row, other: Row) -> list[str]:
        """How the trainings differ where both configurations are at hand ("optim.learning_rate 0.0001 and 0.001"), or the field says."""
        if other.get(VARIANT, field.DIT) != field.DIT and self._second.folder is None:
            return [f"the other is {other[VARIANT]}"]
        mine, its = (known.get(one["recipe"]) for known, one in zip(self._identities, (row, other)))
        if mine is None or its is None:
            return []
        return [f"{key} {mine.get(key)} and {its.get(key)}" for key in {**mine, **its} if mine.get(key) != its.get(key)]

    def _rows(self, row: Row, other: Row, apart: dict[str, str], unsaid: list[str]) -> list[Row]:
        scores = [
            [name for name in study.metrics if plain(one[name]) is not None] for study, one in self._sides(row, other)
        ]
        both = [(name, name) for name in scores[0] if name in scores[1]] or [(scores[0][0], scores[1][0])]
        blocked = [part for part in apart if part not in self._ignore]
        words = [text + (" (ignored)" if part in self._ignore else "") for part, text in apart.items()]
        found = []
        for metric, its in both:
            values = [
                *(plain(row[name]) for name in (metric, metric + DEVIATION, COUNT)),
                *(plain(other[name]) for name in (its, its + DEVIATION, COUNT)),
            ]
            found.append(
                {
                    **{name: plain(row[name]) for name in (*CELL, "step")},
                    "metric": metric if metric == its else f"{metric}, {its}",
                    **dict(zip(SCORES, values)),
                    **({"verdict": NOT_COMPARABLE} if blocked or metric != its else self._verdict(metric, values)),
                    "differs": "; ".join(words) or None,
                    "unsaid": ", ".join(unsaid) or None,
                    "training": "; ".join(self._training(row, other)) or None,
                    "source": row["source"],
                    "against_source": plain(other["citation"]) or other["source"],
                }
            )
        return found

    def _sides(self, row: Row, other: Row) -> tuple[tuple[StudyResults, Row], ...]:
        return (self._first, row), (self._second, other)

    def _verdict(self, metric: str, values: list[Any]) -> Row:
        score, score_sd, score_n, against, against_sd, against_n = values
        delta = score - against
        errors = [
            standard_error(metric, *side, self._noise)
            for side in ((score, score_sd, score_n), (against, against_sd, against_n))
        ]
        row = {"delta": delta, "delta_percent": 100 * delta / against if against else None}
        if None in errors:
            return {**row, "verdict": NO_BAND}
        band = half_width([error for error in errors if error is not None], self._noise.confidence)
        from_seeds = [math.isfinite(error[1]) for error in errors if error is not None]
        assumed = f"{100 * self._noise.cov:g} % {'between implementations' if self._noise.between else 'assumed'}"
        verdict = NOT_SIGNIFICANT
        if abs(delta) > band:
            verdict = BETTER if (delta > 0) == is_better_higher(metric) else WORSE
        return {
            **row,
            "band_percent": 100 * band / against if against else None,
            "band_from": "seeds" if all(from_seeds) else f"seeds, {assumed}" if any(from_seeds) else assumed,
            "verdict": verdict,
        }


def standard_error(
    metric: str, mean: float, deviation: float | None, count: int, noise: Noise
) -> tuple[float, float] | None:
    """Standard error of a mean over seeds, with its degrees of freedom: from the seeds' spread, or of one run by assumption.

    None for a single run's score of a kind whose spread over trainings is not known (anything but a Fréchet distance).
    """
    if count > 1 and deviation is not None and not noise.between:
        return deviation / math.sqrt(count), count - 1
    found = of_column(metric)
    if found is not None and found.noise is not None:
        return noise.cov * abs(mean), math.inf
    return None


def half_width(errors: list[tuple[float, float]], confidence: float) -> float:
    """Half the confidence interval of a difference of independent means (Welch 1947), from their standard errors."""
    variance = sum(error**2 for error, _ in errors)
    spent = sum(error**4 / freedom for error, freedom in errors)
    freedom = variance**2 / spent if spent else math.inf
    quantile = (
        stats.t.ppf(0.5 + confidence / 2, freedom) if math.isfinite(freedom) else stats.norm.ppf(0.5 + confidence / 2)
    )
    return float(quantile) * math.sqrt(variance)


def _agree(part: str, mine: Any, its: Any, is_published: bool) -> bool:
    if plain(mine) is None or plain(its) is None:
        return True
    return abs(mine - its) <= 500_000 if part == "params" and is_published else mine == its  # printed in millions


def _said(key: str, protocol: Mapping[str, Any], other: Mapping[str, Any]) -> Any:
    """A part of a protocol under the name that makes equal things equal."""
    value = protocol.get(key)
    match key:
        case "reference":
            same = protocol.get("reference_sha256"), other.get("reference_sha256")
            return None if same[0] == same[1] is not None else published.REFERENCES.get(Path(str(value)).name, value)
        case "decoder":
            return str(value).removeprefix("sd-vae-")
    return value


def _identities(study: StudyResults) -> dict[str, dict[str, Any]]:
    """Configurations by recipe; none for what is published."""
    if study.folder is None:
        return {}
    return {recipe(run): recipe_fields(run) for run in load_study(study.folder).runs}
