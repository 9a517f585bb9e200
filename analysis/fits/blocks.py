"""Block type as a multiplier of compute: how many times the compute of the reference block a block needs for the same score.

All blocks share E, A and the exponent; block b follows E + A (C / m_b)^-a, so m_b > 1 costs more. To plot: `BlockMultiplier.multiplier`
as a dot with `interval`; 1 is the reference.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.fits.observations import Observations
from analysis.fits.record import Interval, Note, Parameter, Record


@dataclass(frozen=True)
class BlockMultiplier(Record):
    """`multiplier` (None with `said` where it is not determined), from `cells` that both blocks share; `score_ratio` is block / reference."""

    block: str
    multiplier: float | None
    interval: Interval | None
    score_ratio: float
    score_ratio_interval: Interval
    cells: int
    own_exponent: Parameter | None
    said: str | None


@dataclass(frozen=True)
class BlockComparison(Record):
    """All blocks against `reference` (adaLN-Zero where it is there)."""

    reference: str
    equation: str
    exponent: Parameter
    multipliers: tuple[BlockMultiplier, ...]
    notes: tuple[Note, ...]


def compare_blocks(observations: Observations, replicates: int = 1000) -> BlockComparison:
    """Multipliers of all blocks at the common training step.

    Raises:
        NotIdentified: if there is one block only, or no two blocks share a cell.
    """
    raise NotImplementedError
