"""isoFLOP: at fixed training compute, which size is best. Each cell's curve is interpolated in log compute (Akima), a cubic in log N goes
through the sizes at each budget; a minimum at the smallest or largest size is rejected, not reported.

To plot: for each `Budget`, `params`/`scores` as points, `curve_params`/`curve_scores` as a line, `optimum` (None if rejected) as a mark;
`IsoFlop.law` is log N_opt against log C.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.fits.observations import Observations
from analysis.fits.record import Interval, Note, Parameter, Record


@dataclass(frozen=True)
class Budget(Record):
    """One isoFLOP: the sizes' interpolated scores at this training compute, the cubic through them and its interior minimum."""

    train_gflops: float
    sizes: tuple[str, ...]
    params: tuple[float, ...]
    scores: tuple[float, ...]
    curve_params: tuple[float, ...]
    curve_scores: tuple[float, ...]
    optimum_params: float | None
    optimum_interval: Interval | None
    optimum_score: float | None
    rejected: str | None
    parametric_params: float | None
    disagreement: float | None


@dataclass(frozen=True)
class IsoFlop(Record):
    """The isoFLOPs of one block at one patch size; `exponent` of N_opt ~ C^exponent (None with `said` below three budgets)."""

    block: str
    patch_size: int
    metric: str
    label: str
    budgets: tuple[Budget, ...]
    exponent: Parameter
    notes: tuple[Note, ...]


def isoflop(observations: Observations, block: str, patch_size: int, budgets: int = 7) -> IsoFlop:
    """isoFLOPs between the computes that at least three sizes share.

    Raises:
        NotIdentified: if fewer than three sizes have training curves that overlap in compute.
    """
    raise NotImplementedError
