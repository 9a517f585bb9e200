"""How far apart two trainings of one cell fall: from repeated seeds where there are any, else what is published for FID-50K.

Seeds are crossed: seed 1 brings the same data and noise to every cell, which moves all of them and leaves their differences alone.
So the noise of a difference is what is left of log scores once cell and seed are taken out,
sum (y_cs - y_c - y_s + y)^2 / ((C - 1)(S - 1)).
Where cells do not vary alike (Bartlett's test) each has its own spread, with Student's t for its few seeds, and two cells are compared
seed by seed. Dufour et al. arXiv:2606.20536: retraining with another seed moves FID-50K by 1-2 % (relative standard deviation, not
shrinking with compute), 3.2 times more than drawing new samples from one model.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import bartlett, norm
from scipy.stats import t as student

from analysis.fits.observations import CELL, Observations
from analysis.fits.record import HIDDEN, LEVEL, Interval, Record

FID_RELATIVE_SD = 0.013
RETRAINING_OVER_RESAMPLING = 3.2
LEAST_DEGREES = 3
_UNEQUAL = 0.01  # chance of Bartlett's statistic below which cells do not vary alike
_MANY = 20  # degrees of freedom from which Student's t is taken for normal
_LEAST_SD = 1e-9
Place = tuple[Hashable, ...]


@dataclass(frozen=True)
class Noise(Record):
    """Relative standard deviation between trainings, for differences between cells; None where nothing is known.

    `single_sd` is of one run's score by itself, with what its seed does to all cells. `equal`: cells vary alike. `source` says where
    it comes from. `logs` holds log scores by seed for each cell (`CELL`) and step.
    """

    relative_sd: float | None
    source: str
    degrees_of_freedom: int | None = None
    single_sd: float | None = None
    equal: bool = True
    logs: Mapping[Place, Mapping[Hashable, float]] = field(default_factory=dict, **HIDDEN)

    @property
    def sd(self) -> float:
        """The standard deviation of a difference's log score, per run; 0 where nothing is known."""
        return 0.0 if self.relative_sd is None else self.relative_sd

    @property
    def run_sd(self) -> float:
        """The standard deviation of one run's log score; 0 where nothing is known."""
        return max(self.sd, self.single_sd or 0.0)

    def spread(self, place: Place) -> tuple[float, float]:
        """Standard deviation of the mean over a cell's seeds, and its degrees of freedom (inf where they are many or it is published)."""
        values = np.array(list(self.logs[place].values()))
        if not self.equal and len(values) > 1:
            return float(values.std(ddof=1) / np.sqrt(len(values))), len(values) - 1
        degrees = self.degrees_of_freedom
        return self.sd / np.sqrt(len(values)), np.inf if degrees is None or degrees >= _MANY else degrees

    def interval(self, place: Place, against: Place | None = None) -> Interval | None:
        """Interval of a cell's mean score, or of its ratio to another's; None where the noise is unknown or shows nothing."""
        if self.relative_sd is None:
            return None
        middle = _mean(self.logs[place])
        sd, degrees = self.spread(place)
        if against is not None:
            ours, theirs = self.logs[place], self.logs[against]
            middle -= _mean(theirs)
            both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
            if not self.equal and len(both) > 1 and len(both) == len(ours) == len(theirs):
                sd, degrees = float(np.std(both, ddof=1) / np.sqrt(len(both))), len(both) - 1
            else:
                other, fewer = self.spread(against)
                sd, degrees = float(np.hypot(sd, other)), min(degrees, fewer)
        half = quantile(degrees) * sd
        if half < _LEAST_SD:
            return None
        return Interval(float(np.exp(middle - half)), float(np.exp(middle + half)))

    def draws(self, places: Sequence[Place], count: int, rng: np.random.Generator) -> np.ndarray:
        """Random errors (count, places) of the cells' mean log scores, independent between cells."""
        found = np.empty((count, len(places)))
        for at, place in enumerate(places):
            sd, degrees = self.spread(place)
            found[:, at] = sd * (rng.standard_normal(count) if np.isinf(degrees) else rng.standard_t(degrees, count))
        return found

    def of_cells(self, observations: Observations) -> np.ndarray:
        """Standard deviation of one run for each cell of `observations.cells`: the same for all, or each cell's own."""
        cells = observations.cells
        found = np.full(int(cells.max()) + 1, self.sd)
        if not self.equal:
            squares: dict[int, list[float]] = {}
            for one, place in zip(cells, places(observations)):
                if len(values := list(self.logs.get(place, {}).values())) > 1:
                    squares.setdefault(one, []).append(float(np.var(values, ddof=1)))
            for one, values in squares.items():
                found[one] = np.sqrt(np.mean(values))
        return found


def quantile(degrees: float) -> float:
    """Two-sided quantile at `LEVEL` of Student's t, or of the normal distribution for inf degrees."""
    return float(norm.ppf((1 + LEVEL) / 2) if np.isinf(degrees) else student.ppf((1 + LEVEL) / 2, degrees))


def places(observations: Observations) -> list[Place]:
    """For each row the cell and step under which `Noise` knows it."""
    return list(observations.rows[[*CELL, "step"]].itertuples(index=False, name=None))


def crossed(y: np.ndarray, cells: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, int]:
    """What is left of y (n,) once a mean for each cell and one for each seed are fitted, and its degrees of freedom.

    In a full table the mean square over those degrees is sum (y_cs - y_c - y_s + y)^2 / ((C - 1)(S - 1)).
    """
    design = np.concatenate([np.asarray(pd.get_dummies(one), dtype=float) for one in (cells, seeds)], axis=1)
    solved, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    return y - design @ solved, len(y) - int(rank)


def noise_of(observations: Observations) -> Noise:
    """Of cells and steps that several seeds scored; else 1.3 % for FID of 50,000 samples; else unknown."""
    rows = observations.rows.assign(log_score=np.log(observations.score), place=places(observations))
    rows["seed_of"] = rows["seed"].astype(str) if "seed" in rows and rows["seed"].notna().all() else rows["run"]
    logs: dict[Place, dict[Hashable, float]] = {}
    for place, seed, value in zip(rows["place"], rows["seed_of"], rows["log_score"]):
        logs.setdefault(place, {})[seed] = value
    repeated = rows[rows.groupby("place")["seed_of"].transform("nunique") > 1]
    found = {"single": 0.0, "degrees_single": 0, "crossed": 0.0, "degrees": 0, "independent": 0}
    samples: list[list[np.ndarray]] = []
    for _, part in repeated.groupby("step"):
        y, cells = part["log_score"].to_numpy(dtype=float), part.groupby("place").ngroup().to_numpy()
        within = y - part.groupby("place")["log_score"].transform("mean").to_numpy()
        left, degrees = crossed(y, cells, part["seed_of"].to_numpy())
        if degrees < LEAST_DEGREES:  # too few cells to tell what the seeds do to all of them
            left, degrees = within, len(y) - int(cells.max()) - 1
        found["single"] += float(within @ within)
        found["degrees_single"] += len(y) - int(cells.max()) - 1
        found["crossed"] += float(left @ left)
        found["degrees"] += degrees
        found["independent"] = max(found["independent"], degrees)
        samples.append([within[cells == one] for one in range(int(cells.max()) + 1)])
    if found["independent"] >= LEAST_DEGREES:
        sd = float(np.sqrt(found["crossed"] / found["degrees"]))
        single = float(np.sqrt(found["single"] / found["degrees_single"]))
        equal = _equal(samples[-1])
        count = repeated.drop_duplicates(list(CELL)).shape[0]
        said = f"spread over repeated seeds of {count} cells, less what a seed does to all of them"
        said += "" if equal else "; cells do not vary alike, each has its own"
        return Noise(sd, said, int(found["independent"]), single, equal, logs)
    if observations.protocol.get("features") == "inception" and observations.protocol.get("num_samples", 0) >= 50_000:
        said = "no repeated seeds: 1.3 %, as published for FID-50K (arXiv:2606.20536)"
        return Noise(FID_RELATIVE_SD, said, logs=logs)
    return Noise(None, f"unknown: no repeated seeds, and none is published for {observations.label}", logs=logs)


def _mean(logs: Mapping[Hashable, float]) -> float:
    return float(np.mean(list(logs.values())))


def _equal(samples: list[np.ndarray]) -> bool:
    """Whether the cells' spreads over their seeds can be one and the same."""
    several = [one for one in samples if len(one) > 1]
    if len(several) < 2 or max(float(np.ptp(one)) for one in several) < _LEAST_SD:
        return True
    if min(float(np.ptp(one)) for one in several) < _LEAST_SD:
        return False
    return float(bartlett(*several).pvalue) >= _UNEQUAL
