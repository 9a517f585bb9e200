"""The FID Inception against golden outputs of the public one, its resize against the formula, its extractor interface."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from fidelity_oracle import load
from inception_rule import GOLDEN, weights

from dit.errors import UserError
from dit.score import inception, inception_weights
from dit.score.features import Extractor, Features, column, make_extractor
from dit.score.inception import resize_tf1


@pytest.fixture(scope="module")
def folded() -> inception.Folded:
    return inception_weights.fold(inception_weights.check(weights(), "rule"))


@pytest.fixture(scope="module")
def extractor(folded: inception.Folded):
    return inception.extractor(folded, "0" * 64, batch_size=2)


@pytest.fixture(scope="module")
def features(extractor) -> Features:
    with np.load(GOLDEN) as golden:
        return extractor.extract(golden["images"])  # three images in batches of two: the last is a partial one


def _errors(features: Features, bias: np.ndarray) -> dict[str, float]:
    """Largest difference of each output relative to its largest value."""
    with np.load(GOLDEN) as golden:
        pairs = {
            "pool3": features.pooled,
            "spatial": features.spatial,
            "logits_unbiased": features.logits,
            "logits": features.logits + bias,
        }
        return {
            name: float(np.abs(value - golden[name]).max() / np.abs(golden[name]).max())
            for name, value in pairs.items()
        }


def test_equals_golden_outputs(features: Features, folded: inception.Folded) -> None:
    errors = _errors(features, folded.classifier[1])
    assert max(errors.values()) < 1e-5, errors


def test_a_partial_batch_is_that_of_a_full_one(extractor, features: Features) -> None:
    with np.load(GOLDEN) as golden:
        alone = extractor.extract(golden["images"][2:])
    assert alone.pooled.shape == (1, 2048) and features.pooled.shape == (3, 2048)
    np.testing.assert_array_equal(alone.pooled, features.pooled[2:])


def test_interface(extractor) -> None:
    assert isinstance(extractor, Extractor)
    assert (extractor.name, extractor.resize) == ("inception-2015", "tf1-bilinear-299")
    assert column(extractor, "sfid") == "sfid"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "bounds"),
    [
        # eight bits of mantissa over 48 convolutions in a row: 4e-3 to 5e-3 measured, 2e-2 in the spatial features
        ("bfloat16", {"pool3": 1e-2, "spatial": 4e-2, "logits_unbiased": 1e-2, "logits": 1e-2}),
        ("bfloat16x3", dict.fromkeys(("pool3", "spatial", "logits_unbiased", "logits"), 1e-3)),
    ],
)
def test_bfloat16_stays_near(
    folded: inception.Folded, precision: inception.Precision, bounds: dict[str, float]
) -> None:
    made = inception.extractor(folded, "0" * 64, precision, batch_size=3)
    with np.load(GOLDEN) as golden:
        errors = _errors(made.extract(golden["images"]), folded.classifier[1])
    assert made.name == f"inception-2015-{precision}"
    assert all(errors[name] < bound for name, bound in bounds.items()), errors


@pytest.mark.parametrize("size", [1, 8, 64, 299, 512])
def test_resize_is_the_formula(size: int) -> None:
    image = np.random.default_rng(size).integers(0, 256, (1, size, size + 3, 2), dtype=np.uint8)
    found = np.asarray(resize_tf1(jnp.asarray(image), 299))
    for y, x in ((0, 0), (1, 297), (150, 17), (298, 298)):
        at = y * size / 299, x * (size + 3) / 299
        low = [int(np.floor(a + 1e-6)) for a in at]
        high = [min(low[0] + 1, size - 1), min(low[1] + 1, size + 2)]
        part = [a - b for a, b in zip(at, low)]
        corners = image[0].astype(np.float64)
        top = corners[low[0], low[1]] * (1 - part[1]) + corners[low[0], high[1]] * part[1]
        bottom = corners[high[0], low[1]] * (1 - part[1]) + corners[high[0], high[1]] * part[1]
        np.testing.assert_allclose(found[0, y, x], top * (1 - part[0]) + bottom * part[0], atol=2e-2)


def test_images_it_would_misread_are_refused(extractor) -> None:
    with pytest.raises(UserError, match=r"1 channel\(s\), inception-2015 takes 3"):
        extractor.check(np.zeros((2, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match="float32 of shape"):
        extractor.check(np.zeros((2, 8, 8, 3), np.float32))


def test_random_weights_are_named_so() -> None:
    made = make_extractor("inception", "random:7")
    assert made.name == "inception-2015-random-7" and column(made, "fid") == "fd_random_7"
    assert made.weights_sha256 != make_extractor("inception", "random:8").weights_sha256


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 299, 300])
def test_equals_torch_fidelity_at_other_sizes(size: int, folded: inception.Folded, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save({name: torch.tensor(value) for name, value in weights().items()}, path)
    names = ["2048", "logits_unbiased", "logits"]
    oracle = load("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "inception", names, feature_extractor_weights_path=str(path)
    )
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = [output.numpy() for output in oracle(torch.tensor(images.transpose(0, 3, 1, 2).copy()))]
    found = inception.extractor(folded, "0" * 64, batch_size=2).extract(images)
    for ours, theirs in zip((found.pooled, found.logits, found.logits + folded.classifier[1]), expected):
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
