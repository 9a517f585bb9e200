"""What sampling steps buy: score(S) = base x (1 + K S^-k) for each cell, and one law with a shared (K, k) for all cells.

To plot: `CellSampling.steps/gflops/scores` as points, `CellSampling.curve` (over sampling Gflops) as a line; `SamplingLaw.gain` is a `Curve`
of score / base against sampling steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.fits.observations import Observations
from analysis.fits.record import Curve, Interval, Note, Parameter, Record


@dataclass(frozen=True)
class CellSampling(Record):
    """One cell after one training step, over sampling steps. `base` is the score with unlimited sampling steps under the shared law."""

    cell: str
    block: str
    size: str
    patch_size: int
    step: int
    gflops: float
    steps: tuple[int, ...]
    sampling_gflops: tuple[float, ...]
    scores: tuple[float, ...]
    base: Parameter
    own_exponent: Parameter
    curve: Curve


@dataclass(frozen=True)
class BuyBack(Record):
    """Whether sampling buys back a smaller model: the steps at which `larger` matches what `smaller` reaches with unlimited sampling.

    `possible`: unlimited sampling makes the smaller model better than the larger one at its most sampled.
    `saving`: sampling Gflops of the smaller at its most sampled / those of the larger where it matches it.
    """

    smaller: str
    larger: str
    smaller_at_most: float
    larger_at_most: float
    ratio: float
    interval: Interval
    possible: bool
    matching_steps: float | None
    saving: float | None
    said: str


@dataclass(frozen=True)
class SamplingLaw(Record):
    """The shared law over all cells: `amplitude` K and `exponent` k; None with the reason in `notes` if it cannot be fitted."""

    metric: str
    label: str
    equation: str
    amplitude: Parameter
    exponent: Parameter
    cells: tuple[CellSampling, ...]
    buy_back: tuple[BuyBack, ...]
    gain: Curve | None
    residual_sd: float | None
    notes: tuple[Note, ...]


def sampling_law(observations: Observations) -> SamplingLaw:
    """Fit to scores that differ in sampling steps only (`observe(study, apart_from=("sampling_steps",))`).

    Raises:
        NotIdentified: if no cell was scored at three numbers of sampling steps.
    """
    raise NotImplementedError
