"""Precision and recall against brute force over every pair, in one block or many."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from fidelity_oracle import load

from dit.errors import UserError
from dit.score.metrics import precision_recall as module
from dit.score.metrics.precision_recall import precision_recall, radii


def _points(count: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((count, 16)) + 5).astype(np.float32)


def _pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(axis=-1)


def _inside(points: np.ndarray, centres: np.ndarray, nearest: int) -> np.ndarray:
    reach = np.sort(_pairs(centres, centres), axis=1)[:, nearest]
    return (_pairs(points, centres) <= reach[None]).any(axis=1)


@pytest.mark.parametrize("block", [64, 4096])
@pytest.mark.parametrize("nearest", [1, 3])
def test_equals_brute_force(monkeypatch: pytest.MonkeyPatch, block: int, nearest: int) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    references, samples = _points(150, 0), _points(200, 1, 0.8)
    found = precision_recall(references, samples, nearest)
    np.testing.assert_array_equal(found.samples_inside, _inside(samples, references, nearest))
    np.testing.assert_array_equal(found.references_inside, _inside(references, samples, nearest))
    assert 0.1 < found.recall < found.precision < 1
    np.testing.assert_allclose(
        radii(references, nearest), np.sort(_pairs(references, references), axis=1)[:, nearest], rtol=1e-4
    )


def test_repeated_points_count_as_neighbours() -> None:
    points = np.repeat(_points(10, 0), 4, axis=0)
    assert radii(points - points.mean(axis=0), 3) == pytest.approx(np.zeros(40), abs=1e-4)
    assert (radii(points - points.mean(axis=0), 4) > 0.1).all()


def test_identical_sets_are_all_inside() -> None:
    found = precision_recall(_points(50, 0), _points(50, 0))
    assert found.precision == found.recall == 1


def test_half_rounds_and_falls_back_where_it_overflows() -> None:
    references, samples = _points(150, 0), _points(200, 1, 0.8)
    rounded = precision_recall(references, samples, half=True)
    exact = precision_recall(references, samples)
    flips = (rounded.samples_inside != exact.samples_inside).mean()
    assert 0 < flips < 0.1
    large = precision_recall(100 * references, 100 * samples, half=True)  # squares pass 65504
    np.testing.assert_array_equal(large.samples_inside, exact.samples_inside)


@pytest.mark.parametrize("keep", [1, 3, 4, 6])
def test_smallest_along_either_axis(keep: int) -> None:
    values = np.random.default_rng(0).integers(0, 20, (16, 32)).astype(np.float32)  # with ties
    rows, columns = (
        module._smallest_along(jnp.asarray(values), 1, keep),
        module._smallest_along(jnp.asarray(values), 0, keep),
    )
    np.testing.assert_array_equal(rows, np.sort(values, axis=1)[:, :keep].T)
    np.testing.assert_array_equal(columns, np.sort(values, axis=0)[:keep])


def test_faults() -> None:
    with pytest.raises(UserError, match="3 references"):
        precision_recall(_points(3, 0), _points(9, 0))
    broken = _points(9, 0)
    broken[2, 1] = np.nan
    with pytest.raises(UserError, match="samples are not finite"):
        precision_recall(_points(9, 0), broken)


@pytest.mark.torch
def test_equals_torch_fidelity() -> None:
    torch = pytest.importorskip("torch")
    oracle = load("metric_prc")
    references, samples = _points(150, 0), _points(150, 1, 0.8)
    expected = oracle.prc_features_to_metric(
        torch.tensor(samples),
        torch.tensor(references),
        prc_neighborhood=3,
        prc_batch_size=64,
        save_cpu_ram=False,
        verbose=False,
    )
    found = precision_recall(references, samples)
    assert found.precision == pytest.approx(expected["precision"], abs=1e-6)
    assert found.recall == pytest.approx(expected["recall"], abs=1e-6)
