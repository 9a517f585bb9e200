"""Bootstrap confidence intervals of a score: how much it would move with other samples of the same number (Efron 1979).

The interval is the pivotal one, 2 x score minus the quantiles: a resample repeats images and so looks narrower than the samples do,
which shifts FID upwards; reflecting about the score takes that shift out. Training seeds and the reference are held fixed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from dit.errors import UserError

LEVEL = 0.95
LEAST_RESAMPLES = 20
"""Fewer have no tails."""


def interval(
    statistic: Callable[[Int[np.ndarray, "N"]], float],
    count: int,
    score: float,
    resamples: int,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Lower and upper end. `statistic` takes the chosen indices, `count` of them with repetition, and returns the score of those.

    Raises:
        UserError: for fewer than 20 resamples, which have no tails.
    """
    if resamples < LEAST_RESAMPLES:
        raise UserError(f"{resamples} bootstrap resamples: expected at least {LEAST_RESAMPLES}, better 200")
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(2 * score - high), float(2 * score - low)
