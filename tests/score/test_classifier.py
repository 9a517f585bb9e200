"""The small-image extractor: accurate, deterministic, cached, with features of the declared shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit.data.batches import load_images
from dit.design import features as parts
from dit.design.parts import find
from dit.errors import UserError
from dit.score import classifier
from dit.score.features import Extractor


@functools.cache
def extractor():
    return classifier.extractor(find(parts.Features, "digits"))


@functools.cache
def features():
    return extractor().extract(load_images("digits")[0])


def test_the_classifier_knows_its_data():
    assert np.mean(features().logits.argmax(1) == load_images("digits")[1]) > 0.97


def test_features_have_the_declared_shapes():
    assert isinstance(extractor(), Extractor)
    assert features().pooled.shape == (1797, 64)
    assert features().spatial.shape == (1797, 4 * 4 * classifier.SPATIAL_CHANNELS)
    assert features().logits.shape == (1797, 10)
    assert (extractor().metric_suffix, extractor().resize, extractor().channels) == ("digits", "none", 1)


def test_logits_have_no_bias_and_come_from_the_pooled_features():
    shapes = [parameter.shape for parameter in extractor().parameters]
    assert (64, 10) in shapes and (10,) not in shapes
    weights, *_ = np.linalg.lstsq(
        features().pooled.astype(np.float64), features().logits.astype(np.float64), rcond=None
    )
    np.testing.assert_allclose(features().pooled @ weights, features().logits, atol=1e-2)


def test_two_trainings_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(classifier, "RECIPE", {**classifier.RECIPE, "steps": 25})
    for one, other in zip(*(classifier._train(*load_images("digits")) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_cached_file_is_read_and_not_trained_again(monkeypatch, cache):
    first = extractor()
    assert list(cache.glob("classifier-digits-*.npz"))
    monkeypatch.setattr(classifier, "_train", lambda *_: pytest.fail("trained again"))
    again = classifier.extractor(find(parts.Features, "digits"))
    assert again.weights_sha256 == first.weights_sha256
    for one, other in zip(again.parameters, first.parameters, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_recipe_is_another_file(monkeypatch, tmp_path):
    monkeypatch.setenv("DIT_CACHE", str(tmp_path))
    for steps in (1, 2):
        monkeypatch.setattr(classifier, "RECIPE", {**classifier.RECIPE, "steps": steps})
        classifier.extractor(find(parts.Features, "digits"))
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert not list(tmp_path.glob(".*.npz*"))  # nothing half-written is left


def test_images_of_another_shape_are_refused():
    with pytest.raises(UserError, match="32x32"):
        extractor().extract(np.zeros((2, 32, 32, 1), np.uint8))
    with pytest.raises(UserError, match=r"3 channel\(s\), classifier-digits takes 1: convert them \(keep one channel"):
        extractor().extract(np.zeros((2, 8, 8, 3), np.uint8))


def test_larger_images_are_strided_to_the_same_width():
    model = nnx.eval_shape(lambda: classifier.Classifier(32, 1, 10, nnx.Rngs(0)))
    graph, state = nnx.split(model)
    shapes = jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x), state, jnp.zeros((2, 32, 32, 1)))
    assert [part.shape for part in shapes] == [(2, 64), (2, 8 * 8 * 7), (2, 10)]
