"""FID∞ (Chong and Forsyth 2020, arXiv 1911.07023): what FID tends to as samples grow, so its bias in their number is taken out.

The bias of FID falls as 1 / N to first order. FID is taken at 15 sub-sample sizes, evenly spaced from a tenth of the samples to all of
them (5,000 to 50,000 as published), each a random subset; the line through these values over 1 / N meets 0 at FID∞.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from dit.errors import UserError
from dit.score.metrics.frechet import Gaussian, frechet_distance
from dit.score.metrics.moments import Moments

POINTS = 15


def fid_infinity(samples: Float[np.ndarray, "N F"], reference: Gaussian, points: int = POINTS, seed: int = 0) -> float:
    """The intercept at 1 / N = 0; may be slightly negative for sets that are alike.

    Raises:
        UserError: for fewer than 20 samples, of which a tenth has no covariance.
    """
    if len(samples) < 20:
        raise UserError(f"{len(samples)} samples for FID∞: expected at least 20, better 50,000")
    generator = np.random.default_rng(seed)
    sizes = np.linspace(len(samples) // 10, len(samples), points).astype(int)
    values = []
    for size in sizes:
        chosen = samples[generator.permutation(len(samples))[:size]]
        values.append(frechet_distance(Moments(samples.shape[1]).update(chosen).gaussian(), reference))
    _, intercept = np.polyfit(1 / sizes, values, 1)
    return float(intercept)
