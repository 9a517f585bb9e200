"""Drawing: an image is its index and seed, whatever its batch and order; several respacings compile once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.design.config import DiffusionConfig, Evaluation, ModelConfig
from dit.score.sampling import Sampler

MODEL = ModelConfig("adaln", 2, depth=1, hidden_size=8, num_heads=1, input_size=4, in_channels=1, num_classes=10)
EVALUATION = Evaluation(step=1, features="digits", num_samples=8, sampling_steps=8)


def apply(params, x, t, y):
    """A stand-in for a model: its noise depends on image, timestep and label."""
    value = jnp.tanh(params * x) + (t / 1000 + y.astype(jnp.float32) / 10)[:, None, None, None]
    return jnp.concatenate([value, jnp.zeros_like(x)], axis=-1)


@functools.cache
def a_sampler(batch_size):
    return Sampler(apply, MODEL, DiffusionConfig(), batch_size)


def draw(start, stop, batch_size=4, using=None, params=0.5, **changes):
    using = using or a_sampler(batch_size)
    return list(using.draw(jnp.float32(params), dataclasses.replace(EVALUATION, **changes), start, stop))


def images(*arguments, **changes):
    return np.concatenate([part.images for part in draw(*arguments, **changes)])


def labels(*arguments, **changes):
    return np.concatenate([part.labels for part in draw(*arguments, **changes)])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_an_image_does_not_depend_on_its_batch_or_on_the_order(sampler):
    changes = {"sampler": sampler, "sampling_steps": 8}
    whole = images(0, 10, batch_size=10, **changes)
    assert whole.shape == (10, 4, 4, 1)
    assert np.all(np.isfinite(whole)) and len({image.tobytes() for image in whole}) == 10
    np.testing.assert_allclose(images(0, 10, batch_size=3, **changes), whole, atol=1e-5)
    np.testing.assert_allclose(images(6, 9, batch_size=3, **changes), whole[6:9], atol=1e-5)
    np.testing.assert_array_equal(labels(6, 9, batch_size=3, **changes), labels(0, 10, batch_size=10, **changes)[6:9])


def test_batches_come_in_order_and_the_last_is_cut():
    assert [len(part.images) for part in draw(0, 10)] == [4, 4, 2]
    assert [len(part.labels) for part in draw(0, 10)] == [4, 4, 2]
    assert draw(5, 5) == []


def test_labels_are_uniform_and_follow_the_seed_alone():
    drawn = labels(0, 2000, batch_size=2000, sampling_steps=1)
    assert drawn.dtype == np.int32
    assert np.all(np.abs(np.bincount(drawn, minlength=10) - 200) < 60)  # standard deviation 13; the null label never
    np.testing.assert_array_equal(labels(0, 4, params=2.0, cfg_scale=3.0), drawn[:4])
    other = labels(0, 2000, batch_size=2000, sampling_steps=1, sample_seed=1)
    assert np.mean(other == drawn) < 0.15


def test_everything_that_the_evaluation_says_counts():
    plain = images(0, 4)
    for changes in (
        {"sample_seed": 1},
        {"sampling_steps": 9},
        {"sampler": "ddim"},
        {"cfg_scale": 2.0},
        {"params": 0.6},
    ):
        assert np.abs(images(0, 4, **changes) - plain).max() > 1e-3, changes
    np.testing.assert_array_equal(images(0, 4), plain)


def test_guidance_reaches_the_null_label_and_scale_one_is_the_model_alone():
    rows = []

    def spy(params, x, t, y):
        jax.debug.callback(lambda seen: rows.append(np.asarray(seen)), y)
        return apply(params, x, t, y)

    for cfg_scale in (1.0, 4.0):
        images(0, 4, using=Sampler(spy, MODEL, DiffusionConfig(), 4), sampling_steps=1, cfg_scale=cfg_scale)
    jax.effects_barrier()
    expected = labels(0, 4)
    np.testing.assert_array_equal(rows[0], expected)
    np.testing.assert_array_equal(rows[-1], [*expected, 10, 10, 10, 10])


def test_several_respacings_and_seeds_compile_once():
    traced = []

    def counted(params, x, t, y):
        traced.append(x.shape)
        return apply(params, x, t, y)

    sampler = Sampler(counted, MODEL, DiffusionConfig(), 4)
    draw(0, 6, using=sampler)
    once = len(traced)
    for changes in (
        {"sampling_steps": 3},
        {"sampling_steps": 1000},
        {"sample_seed": 9},
        {"num_samples": 5},
        {"step": 7},
    ):
        draw(0, 6, using=sampler, **changes)
    assert len(traced) == once
    draw(0, 6, using=sampler, cfg_scale=2.0)
    assert len(traced) == 2 * once
