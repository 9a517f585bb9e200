"""Fréchet distance against closed forms, SciPy's matrix square root and eigenvalues of the plain product."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from fidelity_oracle import load

from dit.errors import UserError
from dit.score.metrics.frechet import Gaussian, frechet_distance
from dit.score.metrics.moments import Moments


def _features(count: int, dimensions: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((dimensions, dimensions)) / np.sqrt(dimensions)
    return (generator.standard_normal((count, dimensions)) @ mix + seed).astype(np.float32)


def _gaussian(count: int, dimensions: int, seed: int) -> Gaussian:
    return Moments(dimensions).update(_features(count, dimensions, seed)).gaussian()


def test_closed_form_of_diagonal_gaussians() -> None:
    generator = np.random.default_rng(0)
    means, deviations = generator.standard_normal((2, 30)), generator.random((2, 30))
    a, b = (Gaussian(m, np.diag(s**2)) for m, s in zip(means, deviations))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_closed_form_of_one_dimension() -> None:
    a, b = Gaussian(np.array([1.0]), np.array([[4.0]])), Gaussian(np.array([-2.0]), np.array([[9.0]]))
    assert frechet_distance(a, b) == pytest.approx(9 + 1, rel=1e-12)


def test_equals_the_matrix_square_root() -> None:
    a, b = _gaussian(500, 64, 1), _gaussian(400, 64, 2)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    shift = a.mean - b.mean
    expected = shift @ shift + np.trace(a.covariance + b.covariance) - 2 * np.trace(np.real(root))
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, abs=1e-8)


def test_fewer_samples_than_dimensions() -> None:
    # The nuclear norm of the product of centred data is the same trace, taken without any covariance.
    x, y = (_features(count, 80, seed).astype(np.float64) for count, seed in ((30, 1), (50, 2)))
    a, b = (Moments(80).update(z.astype(np.float32)).gaussian() for z in (x, y))
    centred = [(z - z.mean(axis=0)) / np.sqrt(len(z) - 1) for z in (x, y)]
    shift = x.mean(axis=0) - y.mean(axis=0)
    trace = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = shift @ shift + sum((z**2).sum() for z in centred) - 2 * trace
    assert a.factor.shape == (80, 29)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [2, 10, 63, 64, 65, 1000])
def test_identical_sets_are_at_zero(count: int) -> None:
    features = _features(count, 64, 3)
    a = Moments(64).update(features).gaussian()
    other = Moments(64)
    for row in np.random.default_rng(0).permutation(features):  # the same set, rounded in another order
        other.update(row[None])
    scale = float(np.trace(a.covariance))
    assert frechet_distance(a, a) <= 1e-6 * scale
    assert frechet_distance(a, other.gaussian()) <= 1e-6 * scale


def test_constant_features_have_no_spread() -> None:
    still = Moments(8).update(np.ones((5, 8), np.float32)).gaussian()
    moving = _gaussian(100, 8, 1)
    shift = still.mean - moving.mean
    assert frechet_distance(still, moving) == pytest.approx(shift @ shift + np.trace(moving.covariance))


def test_other_dimensions_and_bad_values_are_refused() -> None:
    with pytest.raises(UserError, match="64 and 32 dimensions"):
        frechet_distance(_gaussian(100, 64, 1), _gaussian(100, 32, 1))
    with pytest.raises(UserError, match="not finite"):
        Gaussian(np.zeros(2), np.array([[1.0, np.nan], [0.0, 1.0]]))
    with pytest.raises(UserError, match="mean \\(2,\\) and covariance \\(3, 3\\)"):
        Gaussian(np.zeros(2), np.eye(3))


@pytest.mark.torch
def test_equals_torch_fidelity() -> None:
    oracle = load("metric_fid")
    a, b = _gaussian(500, 64, 1), _gaussian(400, 64, 2)
    statistics = [{"mu": g.mean, "sigma": g.covariance} for g in (a, b)]
    expected = oracle.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-8)
