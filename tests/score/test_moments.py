"""Streaming moments against NumPy's covariance, in any order, merged or resumed."""

from __future__ import annotations

import numpy as np
import pytest

from dit.errors import UserError
from dit.score.metrics import moments
from dit.score.metrics.moments import Moments


@pytest.fixture
def features() -> np.ndarray:
    # far from the origin, where sums of squares would cancel
    return (np.random.default_rng(0).standard_normal((301, 24)) + 1000).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "BLOCK", 64)


def _close(gaussian, features: np.ndarray) -> None:
    exact = features.astype(np.float64)
    np.testing.assert_allclose(gaussian.mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(gaussian.covariance, np.cov(exact, rowvar=False), rtol=0, atol=1e-12)
    assert gaussian.count == len(features)


@pytest.mark.parametrize("batch", [1, 7, 64, 301])
def test_equals_numpy_covariance_for_any_batch_size(features: np.ndarray, batch: int, small_blocks: None) -> None:
    streamed = Moments(24)
    for start in range(0, len(features), batch):
        streamed.update(features[start : start + batch])
    _close(streamed.gaussian(), features)


def test_merged_parts_equal_the_whole(features: np.ndarray, small_blocks: None) -> None:
    parts = [Moments(24).update(part) for part in np.split(features, [5, 150, 280])]
    total = Moments(24)
    for part in parts:
        total.merge(part)
    _close(total.gaussian(), features)


def test_saving_changes_no_bit(features: np.ndarray, small_blocks: None, tmp_path) -> None:
    through, resumed = Moments(24), Moments(24)
    for start in range(0, 300, 10):
        through.update(features[start : start + 10])
        resumed.update(features[start : start + 10])
        if start in (40, 200):
            np.savez(tmp_path / "state.npz", **resumed.state("x_"))
            with np.load(tmp_path / "state.npz") as arrays:
                resumed = Moments.from_state(arrays, "x_")
    assert through.gaussian().covariance.tobytes() == resumed.gaussian().covariance.tobytes()
    assert through.gaussian().mean.tobytes() == resumed.gaussian().mean.tobytes()


def test_memory_does_not_grow_with_rows(small_blocks: None) -> None:
    import tracemalloc

    rows = np.ones((50, 32), np.float32)

    def peak(updates: int) -> int:
        streamed = Moments(32)
        tracemalloc.start()
        for _ in range(updates):
            streamed.update(rows)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(400) < 1.2 * peak(10)


def test_nan_names_the_image() -> None:
    rows = np.zeros((3, 4), np.float32)
    rows[1, 2] = np.nan
    with pytest.raises(UserError, match="pooled features of image 5 are not finite"):
        Moments(4, "pooled features").update(np.zeros((4, 4), np.float32)).update(rows)


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(UserError, match="1 image"):
        Moments(4).update(np.zeros((1, 4), np.float32)).gaussian()


def test_other_width_is_refused() -> None:
    with pytest.raises(UserError, match="5 dimensions, expected 4"):
        Moments(4).update(np.zeros((2, 5), np.float32))
    with pytest.raises(UserError, match="5 dimensions, expected 4"):
        Moments(4).merge(Moments(5))
