"""Pictures of the study beside this file, and what it measures of them."""

import numpy as np

SIDE = 8


def spots():
    """Red and blue spots on black: images (uint8, NHWC) and labels."""
    rng = np.random.default_rng(0)
    images, labels = np.zeros((64, SIDE, SIDE, 3), np.uint8), np.arange(64) % 2
    for image, label in zip(images, labels):
        row, column = rng.integers(0, SIDE - 2, 2)
        image[row : row + 2, column : column + 2, 2 * label] = 255
    return images, labels


def colours(images):
    """Means of rows and columns in each channel."""
    pixels = images.astype(np.float32) / 255
    return np.concatenate([pixels.mean((1, 2)), pixels.std((1, 2))], axis=1)
