"""KID against a loop over its definition, FID∞ on Gaussians of known distance, and bootstrap coverage."""

from __future__ import annotations

import numpy as np
import pytest
from fidelity_oracle import load

from dit.errors import UserError
from dit.score.metrics.bootstrap import interval
from dit.score.metrics.fid_infinity import fid_infinity
from dit.score.metrics.frechet import Gaussian, frechet_distance
from dit.score.metrics.kid import kid, squared_mmd
from dit.score.metrics.moments import Moments


def _points(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, 12)) + shift).astype(np.float32)


def test_equals_the_definition_pair_by_pair() -> None:
    x, y = _points(14, 0), _points(9, 1, 0.3)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a.astype(np.float64) @ b.astype(np.float64) / 12 + 1) ** 3)

    within = [np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    expected = within[0] + within[1] - 2 * np.mean([k(a, b) for a in x for b in y])
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-12)


def test_is_unbiased() -> None:
    draws = [squared_mmd(_points(20, 2 * i), _points(20, 2 * i + 1)) for i in range(400)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(len(draws))


def test_subsets_are_seeded_and_no_larger_than_the_sets() -> None:
    x, y = _points(30, 0), _points(40, 1, 0.5)
    assert (kid(x, y, subsets=5, subset_size=10) == kid(x, y, subsets=5, subset_size=10)).all()
    assert kid(x, y, subsets=3) == pytest.approx(kid(x, y, subsets=3, subset_size=30))
    with pytest.raises(UserError, match="1 image"):
        kid(x[:1], y)


def test_fid_infinity_takes_the_bias_out() -> None:
    truth = Gaussian(np.full(12, 0.5), np.eye(12))
    samples = _points(3000, 0)
    plain = frechet_distance(Moments(12).update(samples[:300]).gaussian(), truth)
    assert plain > 3.02  # the distance is 12 · 0.25 = 3, and the estimate is biased upwards
    estimates = [fid_infinity(_points(600, seed), truth) for seed in range(20)]
    assert np.mean(estimates) == pytest.approx(3, abs=0.08)
    with pytest.raises(UserError, match="5 samples"):
        fid_infinity(samples[:5], truth)


def test_intervals_cover_the_truth() -> None:
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).standard_normal(60)
        low, high = interval(lambda chosen, v=values: float(v[chosen].mean()), 60, float(values.mean()), 100, seed)
        covered += low <= 0 <= high
    assert 0.86 < covered / 200 < 0.99
    with pytest.raises(UserError, match="5 bootstrap resamples"):
        interval(lambda chosen: 0.0, 3, 0.0, 5)


@pytest.mark.torch
def test_equals_torch_fidelity() -> None:
    torch = pytest.importorskip("torch")
    oracle = load("metric_kid")
    x, y = _points(40, 0), _points(40, 1, 0.3)
    expected = oracle.kid_features_to_metric(
        torch.tensor(x), torch.tensor(y), kid_subsets=1, kid_subset_size=40, verbose=False
    )
    assert squared_mmd(x, y) == pytest.approx(
        expected["kernel_inception_distance_mean"], rel=1e-5
    )  # its kernel is in float32
