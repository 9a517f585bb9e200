"""Every metric of one set of samples against one reference, each with its interval where one was asked for.

A metric that the reference cannot give (no images in it, so no features; no spatial statistics) is None with a reason, unless it was
asked for by name, which is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dit.errors import UserError
from dit.score.evaluation import Statistics
from dit.score.metrics.bootstrap import interval
from dit.score.metrics.fid_infinity import fid_infinity
from dit.score.metrics.frechet import frechet_distance
from dit.score.metrics.kid import kid
from dit.score.metrics.moments import Moments
from dit.score.metrics.precision_recall import PrecisionRecall, precision_recall
from dit.score.reference import Reference

METRICS = ("fid", "sfid", "inception_score", "precision", "recall", "kid", "fid_infinity")
DEFAULT = METRICS[:5]
NEED_SAMPLES = ("precision", "recall", "kid", "fid_infinity")
"""Metrics that compare single images, so pooled features of the samples are kept."""
NEED_REFERENCES = ("precision", "recall", "kid")


@dataclass(frozen=True)
class Score:
    """A value, its 95 % interval where one was asked for, the spread over splits or subsets, and why there is no value."""

    value: float | None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    reason: str | None = None


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
        required: whether a metric that the reference cannot give is an error.

    Raises:
        UserError: for too few samples, or as `required` says.
    """
    found: dict[str, Score] = {}
    manifolds = None
    for metric in metrics:
        reason = _missing(metric, reference)
        if reason is not None:
            if required:
                raise UserError(f"no {metric}: {reason}; give a reference made of images, or leave it out of --metrics")
            found[metric] = Score(None, reason=reason)
            continue
        if metric in ("precision", "recall") and manifolds is None:
            manifolds = precision_recall(reference.features, np.asarray(statistics.features), half=half)
        found[metric] = _score(metric, statistics, reference, manifolds, resamples, seed)
    return found


def _missing(metric: str, reference: Reference) -> str | None:
    if metric in NEED_REFERENCES and not len(reference.features):
        return "the reference holds statistics only, no features of images"
    if metric == "sfid" and reference.spatial is None:
        return "the reference holds no spatial statistics (mu_s, sigma_s)"
    return None


def _score(
    metric: str,
    statistics: Statistics,
    reference: Reference,
    manifolds: PrecisionRecall | None,
    resamples: int,
    seed: int,
) -> Score:
    features = np.asarray(statistics.features)
    match metric:
        case "fid":
            value = frechet_distance(statistics.pooled.gaussian(), reference.pooled)
            if not resamples:
                return Score(value)

            def resampled(chosen: np.ndarray) -> float:
                return frechet_distance(
                    Moments(features.shape[1]).update(features[chosen]).gaussian(), reference.pooled
                )

            return Score(value, *interval(resampled, len(features), value, resamples, seed))
        case "sfid":
            assert reference.spatial is not None
            return Score(frechet_distance(statistics.spatial.gaussian(), reference.spatial))
        case "inception_score":
            splits = statistics.inception.scores()
            return Score(float(splits.mean()), spread=_deviation(splits))
        case "precision" | "recall":
            assert manifolds is not None
            inside = manifolds.samples_inside if metric == "precision" else manifolds.references_inside
            value = float(inside.mean())
            if not resamples:
                return Score(value)
            # given the manifolds: what moves is which points are asked about
            return Score(
                value, *interval(lambda chosen: float(inside[chosen].mean()), len(inside), value, resamples, seed)
            )
        case "kid":
            subsets = kid(reference.features, features, seed=seed)
            return Score(float(subsets.mean()), spread=_deviation(subsets))
        case "fid_infinity":
            return Score(fid_infinity(features, reference.pooled, seed=seed))
    raise UserError(f"metric '{metric}' is unknown: expected some of {', '.join(METRICS)}")


def _deviation(values: np.ndarray) -> float | None:
    return float(values.std()) if len(values) > 1 else None
