"""How far apart two trainings of one cell fall: from repeated seeds where there are any, else what is published for FID-50K.

Dufour et al. arXiv:2606.20536: retraining with another seed moves FID-50K by 1-2 % (relative standard deviation, not shrinking with
compute), 3.2 times more than drawing new samples from one model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fits.observations import Observations
from analysis.fits.record import Record

FID_RELATIVE_SD = 0.013
RETRAINING_OVER_RESAMPLING = 3.2
LEAST_DEGREES = 3


@dataclass(frozen=True)
class Noise(Record):
    """Relative standard deviation between two trainings of one cell; None where nothing is known. `source` says where it comes from."""

    relative_sd: float | None
    source: str
    degrees_of_freedom: int | None = None

    @property
    def sd(self) -> float:
        """The standard deviation of a log score, 0 where nothing is known."""
        return 0.0 if self.relative_sd is None else self.relative_sd


def noise_of(observations: Observations) -> Noise:
    """Pooled over cells and steps that several seeds scored; else 1.3 % for FID of 50,000 samples; else unknown."""
    table = observations.rows.assign(log_score=np.log(observations.score), cell=observations.cells)
    groups = table.groupby(["cell", "step"])
    squares = float(((table["log_score"] - groups["log_score"].transform("mean")) ** 2).sum())
    degrees = len(table) - groups.ngroups
    seeds = table.groupby("cell")["run"].nunique()
    independent = int((seeds - 1).sum())
    if independent >= LEAST_DEGREES and degrees:
        sd = float(np.sqrt(squares / degrees))
        return Noise(sd, f"spread over repeated seeds of {int((seeds > 1).sum())} cells", independent)
    if observations.protocol.get("features") == "inception" and observations.protocol.get("num_samples", 0) >= 50_000:
        return Noise(FID_RELATIVE_SD, "no repeated seeds: 1.3 %, as published for FID-50K (arXiv:2606.20536)")
    return Noise(None, f"unknown: no repeated seeds, and none is published for {observations.label}")
