"""Metrics of one set of samples against one reference, each with its interval where one was asked for.

What a metric is taken of stands in its record (`dit.design.metrics`). One that reference or features cannot give is None with a reason,
unless it was asked for by name, which is an error.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from dit.design.metrics import Metric, metric
from dit.design.parts import load
from dit.errors import UserError
from dit.score.evaluation import Statistics
from dit.score.metrics.bootstrap import interval
from dit.score.metrics.fid_infinity import fid_infinity
from dit.score.metrics.frechet import Gaussian, frechet_distance
from dit.score.metrics.inception_score import InceptionScore
from dit.score.metrics.kid import kid
from dit.score.metrics.moments import Moments
from dit.score.metrics.precision_recall import PrecisionRecall, precision_recall
from dit.score.reference import Reference


@dataclass(frozen=True)
class Score:
    """A value, its 95 % interval where one was asked for, the spread over splits or subsets, and why there is no value."""

    value: float | None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    reason: str | None = None


class Facts:
    """What metrics are taken of, by the names of `dit.design.metrics.NEEDS`; each is made once, when it is first asked for."""

    def __init__(self, statistics: Statistics, reference: Reference, half: bool = False, seed: int = 0):
        self._statistics, self._reference, self.half, self.seed = statistics, reference, half, seed

    def missing(self, need: str) -> str | None:
        """Why something is not to be had, in a few words."""
        real, seen = self._reference, self._statistics
        if need in ("reference", "manifolds") and not len(real.features):
            return "the reference holds statistics only, no features of images"
        if need == "real_spatial" and real.spatial is None:
            return "the reference holds no spatial statistics (mu_s, sigma_s)"
        if (need == "spatial" and seen.spatial is None) or (need == "logits" and seen.inception is None):
            return f"these features have no {need} part"
        return None

    @functools.cached_property
    def pooled(self) -> Gaussian:
        """Of the samples' pooled features."""
        return self._statistics.pooled.gaussian()

    @property
    def real_pooled(self) -> Gaussian:
        """Of the real images' pooled features."""
        return self._reference.pooled

    @functools.cached_property
    def spatial(self) -> Gaussian:
        """Of the samples' spatial features."""
        assert self._statistics.spatial is not None
        return self._statistics.spatial.gaussian()

    @property
    def real_spatial(self) -> Gaussian | None:
        """Of the real images' spatial features."""
        return self._reference.spatial

    @property
    def logits(self) -> InceptionScore | None:
        """Sums of the samples' class probabilities."""
        return self._statistics.inception

    @property
    def features(self) -> np.ndarray:
        """Pooled features of the samples, (N, F)."""
        return self._statistics.features

    @property
    def reference(self) -> np.ndarray:
        """Pooled features of the first real images, (R, F)."""
        return self._reference.features

    @functools.cached_property
    def manifolds(self) -> PrecisionRecall:
        """Which points lie in the neighbourhood of the other set."""
        return precision_recall(self.reference, self.features, half=self.half)


def score(
    statistics: Statistics,
    reference: Reference,
    metrics: tuple[str, ...],
    half: bool = False,
    resamples: int = 0,
    seed: int = 0,
    required: bool = False,
) -> dict[str, Score]:
    """The metrics, in order.

    Args:
        half: precision and recall in float16, as the original suite.
        resamples: bootstrap resamples for intervals of FID, precision and recall; 0 for none.
        seed: of sub-samples and resamples.
        required: whether a metric that cannot be given is an error.

    Raises:
        UserError: for too few samples, a metric that breaks or is not finite, or as `required` says.
    """
    facts = Facts(statistics, reference, half, seed)
    found: dict[str, Score] = {}
    for name in metrics:
        one = metric(name)
        reason = next(filter(None, map(facts.missing, one.needs)), None)
        if reason is not None and required:
            raise UserError(f"no {one.name}: {reason}; give others that do, or leave the metric out")
        found[name] = Score(None, reason=reason) if reason is not None else _score(one, facts, resamples)
    return found


def _score(one: Metric, facts: Facts, resamples: int) -> Score:
    values = _taken(one, facts)
    value = float(values.mean())
    if not math.isfinite(value):
        raise UserError(
            f"metric '{one.name}' is {value}: expected a finite number, look at its function and the images"
        )
    if resamples and one.interval:
        return Score(value, *load(one.interval)(facts, value, resamples))
    return Score(value, spread=float(values.std()) if values.size > 1 else None)


def _taken(one: Metric, facts: Facts) -> np.ndarray:
    """What the metric's function gives, as numbers. A user's own function may break in any way."""
    of, given = load(one.of), [getattr(facts, need) for need in one.needs]
    if not one.source:
        return np.asarray(of(*given))
    if not one.of:
        raise UserError(f"metric '{one.name}' is of a study's own file, which was not run here: give that study's file")
    try:
        values = np.asarray(of(*given), np.float64)
    except Exception as error:
        raise UserError(f"metric '{one.name}' raised {type(error).__name__}: {error}") from error
    if not values.size:
        raise UserError(f"metric '{one.name}' gave nothing: expected a number")
    return values


def kid_of_subsets(reference: np.ndarray, features: np.ndarray, seed: int) -> np.ndarray:
    """`kid`, of each subset."""
    return kid(reference, features, seed=seed)


def extrapolated(features: np.ndarray, real: Gaussian, seed: int) -> float:
    """`fid_infinity`."""
    return fid_infinity(features, real, seed=seed)


def frechet_interval(facts: Facts, value: float, resamples: int) -> tuple[float, float]:
    """Interval of a Fréchet distance of pooled features: other samples, the same reference."""
    features = facts.features

    def resampled(chosen: np.ndarray) -> float:
        return frechet_distance(Moments(features.shape[1]).update(features[chosen]).gaussian(), facts.real_pooled)

    return interval(resampled, len(features), value, resamples, facts.seed)


def precision_interval(facts: Facts, value: float, resamples: int) -> tuple[float, float]:
    """Interval of precision given the manifolds: what moves is which samples are asked about."""
    return _share_interval(facts.manifolds.samples_inside, facts, value, resamples)


def recall_interval(facts: Facts, value: float, resamples: int) -> tuple[float, float]:
    """The same of recall, and the real images."""
    return _share_interval(facts.manifolds.references_inside, facts, value, resamples)


def _share_interval(inside: np.ndarray, facts: Facts, value: float, resamples: int) -> tuple[float, float]:
    return interval(lambda chosen: float(inside[chosen].mean()), len(inside), value, resamples, facts.seed)
