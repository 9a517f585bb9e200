"""Block type as a factor of training steps: how many times the reference's steps a block needs for the same score, cell by cell.

At one size and patch size a block's curve is taken to be the reference's with D stretched: L_b(D) = L_ref(D / m). With d the log ratio of
scores at the last common step, seed by seed, and s the reference's local exponent in D, from its last two steps: log m = mean d / mean s
over cells. Its interval is Student's over cells, of d - s log m. Where cells do not fall alike with training (s differs by more than
seeds do) no factor holds for all of them, and none is given. m times the ratio of Gflops is the factor of compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2
from scipy.stats import f as fisher_f

from analysis.fits.fit import NotIdentified
from analysis.fits.noise import crossed, noise_of, quantile
from analysis.fits.observations import Observations
from analysis.fits.record import Interval, Record

LEAST_CELLS = 3
_UNLIKE = 0.01
_PLACE = ["size", "patch_size", "image_size"]


@dataclass(frozen=True)
class StepFactor(Record):
    """`factor` of the reference's training steps for the same score (None, with `said`, where none holds), and of its compute."""

    block: str
    factor: float | None
    interval: Interval | None
    compute_factor: float | None
    cells: int
    said: str | None


def step_factors(observations: Observations, reference: str) -> tuple[StepFactor, ...]:
    """The factor of every other block over the cells that it shares with the reference.

    Raises:
        NotIdentified: if the reference was not scored at two steps.
    """
    data, noise = observations, noise_of(observations)
    steps = sorted({int(step) for step in data.rows["step"][data.common | (data.labels("block") == reference)]})
    last = int(data.at_common_step().rows["step"].iloc[0])
    before = [step for step in steps if step < last]
    if not before:
        raise NotIdentified("a factor of training steps needs scores of the reference at two steps")
    named = data.rows.assign(y=np.log(data.score), seed=data.rows["seed"].astype(str))
    wide: Any = named.pivot_table(index=["block", *_PLACE, "seed"], columns="step", values="y", aggfunc="mean")
    gflops: Any = named.groupby(["block", *_PLACE])["gflops"].first().astype(float)
    ours = wide.loc[reference].dropna(subset=[last, before[-1]])
    slope = (ours[before[-1]] - ours[last]) / np.log(last / before[-1])
    found = []
    for block in dict.fromkeys(data.labels("block")):
        if block != reference:
            ratio = (wide.loc[block][last] - ours[last]).dropna()
            both: Any = pd.DataFrame({"ratio": ratio, "slope": slope}).dropna()
            cost = (gflops.loc[block] / gflops.loc[reference]).dropna()
            found.append(
                _factor(str(block), both, float(np.exp(np.log(cost).mean())), noise.sd, np.log(last / before[-1]))
            )
    return tuple(found)


def _factor(block: str, both: Any, cost: float, sd: float, span: float) -> StepFactor:
    cells: Any = both.groupby(level=_PLACE).mean()
    count = len(cells)
    if count < LEAST_CELLS:
        return StepFactor(
            block, None, None, None, count, f"{count} shared cells with two steps, {LEAST_CELLS} are needed"
        )
    if said := _unlike(both["slope"], sd, span):
        return StepFactor(block, None, None, None, count, said)
    ratio, slope = cells["ratio"].to_numpy(), cells["slope"].to_numpy()
    log_factor = ratio.mean() / slope.mean()
    half = quantile(count - 1) * np.std(ratio - slope * log_factor, ddof=1) / np.sqrt(count) / slope.mean()
    low, high = float(np.exp(log_factor - half)), float(np.exp(log_factor + half))
    factor = float(np.exp(log_factor))
    return StepFactor(block, factor, Interval(low, high) if half > 1e-9 else None, factor * cost, count, None)


def _unlike(slope: Any, sd: float, span: float) -> str | None:
    """Why one factor does not hold: the cells' exponents in D differ by more than seeds do, or are not positive on average."""
    cells, seeds = slope.groupby(level=_PLACE).ngroup().to_numpy(), slope.index.get_level_values("seed").to_numpy()
    means = slope.groupby(level=_PLACE).mean().to_numpy()
    between = float(np.bincount(cells) @ (means - slope.mean()) ** 2)
    freedom = len(means) - 1
    left, degrees = crossed(slope.to_numpy(), cells, seeds)
    if means.mean() <= 0:
        return "the reference does not improve between its last two steps"
    chance = 1.0
    if degrees > 0:
        chance = float(fisher_f.sf(between / freedom / max(left @ left / degrees, 1e-18), freedom, degrees))
    elif sd:
        chance = float(chi2.sf(between / (2 * sd**2 / span**2), freedom))
    if chance >= _UNLIKE:
        return None
    return (
        f"lack of fit: the reference's cells do not fall alike with training (exponents of D from {means.min():.2f} to "
        f"{means.max():.2f}), so that no factor holds for all; leave out those that differ, as in --where"
    )
