"""Inception Score against a direct evaluation of its definition, streamed, split and merged."""

from __future__ import annotations

import numpy as np
import pytest
from fidelity_oracle import load
from scipy.special import softmax

from dit.errors import UserError
from dit.score.metrics.inception_score import InceptionScore, inception_score


def _logits(count: int, classes: int = 20) -> np.ndarray:
    return (3 * np.random.default_rng(0).standard_normal((count, classes))).astype(np.float32)


def _direct(logits: np.ndarray, split: int) -> float:
    scores = []
    for start in range(0, len(logits), split):
        p = softmax(logits[start : start + split].astype(np.float64), axis=1)
        kl = (p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1)
        scores.append(np.exp(kl.mean()))
    return float(np.mean(scores))


@pytest.mark.parametrize("split", [50, 64, 1000])
def test_equals_the_definition_split_by_split(split: int) -> None:
    logits = _logits(230)
    assert inception_score(logits, split) == pytest.approx(_direct(logits, split), rel=1e-12)


def test_streaming_and_merging_change_nothing(tmp_path) -> None:
    logits = _logits(230)
    a, b = InceptionScore(20, 50), InceptionScore(20, 50)
    for start in range(0, 110, 11):
        a.update(logits[start : start + 11], start)
    np.savez(tmp_path / "a.npz", **a.state())
    with np.load(tmp_path / "a.npz") as arrays:
        a = InceptionScore.from_state(arrays)
    b.update(logits[110:], 110)
    assert a.merge(b).scores().mean() == pytest.approx(_direct(logits, 50), rel=1e-12)


def test_extremes() -> None:
    certain = np.eye(8, dtype=np.float32).repeat(5, axis=0) * 1000
    assert inception_score(certain) == pytest.approx(8)
    assert inception_score(np.zeros((10, 8), np.float32)) == pytest.approx(1)


def test_no_images() -> None:
    with pytest.raises(UserError, match="no images"):
        InceptionScore(8).scores()


@pytest.mark.torch
def test_equals_torch_fidelity() -> None:
    torch = pytest.importorskip("torch")
    oracle = load("metric_isc")
    logits = _logits(200)
    expected = oracle.isc_features_to_metric(torch.tensor(logits), splits=4, shuffle=False)["inception_score_mean"]
    assert inception_score(logits, 50) == pytest.approx(expected, rel=1e-6)
