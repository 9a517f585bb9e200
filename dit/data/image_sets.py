"""Images to score or to make statistics of, streamed in order: an `.npz` batch, a folder, or a data set by name.

An `.npz` is ADM's: `arr_0`, uint8 (N, height, width, 3). It is read as a stream, so 50,000 images of 256 px need no 10 GB of memory. An
entry `protocol`, JSON text, may say how samples were drawn: sampler, sampling_steps, cfg_scale, cfg_channels, ema, decoder, sample_seed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit.data.images import IMAGE_SUFFIXES, BrokenImage, find_files, open_rgb, say
from dit.data.shards import MANIFEST
from dit.errors import UserError
from dit.store.arrays import read_arrays, read_header, reading

MOST_PIXELS = 2**24
"""Of one image to score."""
ARRAYS = ("arr_0", "images")
"""Names under which an `.npz` may hold its images."""


class ImageSet(ABC):
    """Images in a fixed order, where they come from, and how they were drawn (empty where nobody says).

    `said` is what a reader should know of how they were chosen, in a line.
    """

    source: str
    protocol: dict[str, Any]
    said: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """How many images."""

    @functools.cached_property
    @abstractmethod
    def sha256(self) -> str:
        """Of the images' bytes as stored."""

    @abstractmethod
    def batches(self, size: int, start: int, stop: int) -> Iterator[UInt8[np.ndarray, "B height width channels"]]:
        """Images `start` to `stop`, `size` at a time, the last batch perhaps smaller."""


class ArrayImages(ImageSet):
    """Images held in memory, such as a data set that a package ships."""

    def __init__(self, source: str, images: UInt8[np.ndarray, "N height width channels"]):
        self.source, self.images = source, images
        self.protocol = {}

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(
            repr(self.images.shape).encode() + np.ascontiguousarray(self.images).tobytes()
        ).hexdigest()

    def batches(self, size: int, start: int, stop: int) -> Iterator[np.ndarray]:
        for at in range(start, stop, size):
            yield self.images[at : min(at + size, stop)]


class NpzImages(ImageSet):
    """An `.npz` batch, decompressed as it is read."""

    def __init__(self, path: Path):
        self.path, self.source = path, path.name
        with reading(path), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            self._entry = next((f"{name}.npy" for name in ARRAYS if f"{name}.npy" in names), None)
            if self._entry is None:
                found = ", ".join(names) or "nothing"
                raise UserError(f"{path} holds {found}: expected images as arr_0, uint8 (N, height, width, channels)")
            with archive.open(self._entry) as file:
                self.shape = _header(file, path)
            declared = archive.getinfo(self._entry).file_size
            if math.prod(self.shape[1:3]) > MOST_PIXELS or not 0 <= declared - math.prod(self.shape) <= 2**16:
                raise UserError(
                    f"{path} holds {declared:,} bytes for images of shape {self.shape}: expected one byte for each value, and no "
                    f"more than {MOST_PIXELS:,} pixels an image"
                )
            self.protocol = _read_protocol(path) if "protocol.npy" in names else {}

    def __len__(self) -> int:
        return self.shape[0]

    @functools.cached_property
    def sha256(self) -> str:
        with reading(self.path), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def batches(self, size: int, start: int, stop: int) -> Iterator[np.ndarray]:
        each = int(np.prod(self.shape[1:]))
        with reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open(str(self._entry)) as file:
            _header(file, self.path)
            file.seek(start * each, 1)
            for at in range(start, stop, size):
                count = min(size, stop - at)
                data = file.read(count * each)
                if len(data) < count * each:
                    raise UserError(
                        f"{self.path} is cut short at image {at + len(data) // each} of {len(self)}: copy it again"
                    )
                yield np.frombuffer(data, np.uint8).reshape(count, *self.shape[1:])


class FolderImages(ImageSet):
    """Every image under a folder, in order of path, as RGB; all of one size."""

    def __init__(self, folder: Path):
        self.folder, self.source = folder, folder.name
        self.protocol = {}
        found = find_files(folder)
        self.paths = found.paths
        if found.hidden or found.others:
            self.said = f"{folder}: {say(len(found.paths), found.hidden, found.others)}"
        if (folder / MANIFEST).is_file():
            raise UserError(
                f"{folder} holds latents: decode them with `dit reference {folder} --vae DIR --out NEW.npz`, and give that file"
            )
        if not self.paths:
            raise UserError(f"no images in {folder}: expected files such as {', '.join(IMAGE_SUFFIXES[:3])}")

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(path.relative_to(self.folder).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
        return digest.hexdigest()

    @functools.cached_property
    def _size(self) -> tuple[int, int]:
        return self._open(self.paths[0]).shape[:2]

    def batches(self, size: int, start: int, stop: int) -> Iterator[np.ndarray]:
        for at in range(start, min(stop, len(self)), size):
            yield np.stack([self._checked(path) for path in self.paths[at : min(at + size, stop)]])

    def _open(self, path: Path) -> np.ndarray:
        try:
            return np.asarray(open_rgb(path), np.uint8)
        except BrokenImage as error:
            raise UserError(f"{path} cannot be read ({error}): replace it, or take it out of the folder") from error

    def _checked(self, path: Path) -> np.ndarray:
        image = self._open(path)
        if image.shape[0] * image.shape[1] > MOST_PIXELS:
            raise UserError(f"{path} has more than {MOST_PIXELS:,} pixels: too large to score")
        if image.shape[:2] != self._size:
            raise UserError(
                f"{path} is {image.shape[0]}x{image.shape[1]}, others are {self._size[0]}x{self._size[1]}: expected one size"
            )
        return image


def open_images(source: str, channels: int) -> ImageSet:
    """The images at a path, or of a data set by name; a grey data set is repeated where `channels` is 3.

    Raises:
        UserError: if there are none, or they are not uint8 images.
    """
    path = Path(source)
    if path.is_dir():
        return FolderImages(path)
    if path.is_file():
        if path.suffix != ".npz":
            raise UserError(f"{path} is neither an .npz file nor a folder: expected samples as one of these")
        return NpzImages(path)
    from dit.data.batches import load_images
    from dit.design.data import sets_of_pixels

    if source in sets_of_pixels():
        images = load_images(source)[0]
        return ArrayImages(source, np.repeat(images, channels, axis=3) if images.shape[3] == 1 else images)
    raise UserError(
        f"no file, folder or data set '{source}': expected an .npz of images (arr_0), a folder of images, "
        f"{' or '.join(sets_of_pixels())}"
    )


def _header(file: Any, path: Path) -> tuple[int, ...]:
    """The shape that an `.npy` stream declares, once it is what images are; leaves the stream at the first image."""
    shape, fortran, dtype = read_header(file, path)
    if dtype != np.uint8 or len(shape) != 4 or fortran or 0 in shape[1:]:
        raise UserError(
            f"{path} holds {dtype} of shape {shape}: expected uint8 (number, height, width, channels) in C order"
        )
    if shape[0] == 0:
        raise UserError(f"{path} holds no images: expected at least 2")
    return shape


def _read_protocol(path: Path) -> dict[str, Any]:
    try:
        protocol = json.loads(str(read_arrays(path, ("protocol",), 2**20)["protocol"]))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: its 'protocol' is not JSON text ({error}): write it again, or leave it out"
        ) from error
    if not isinstance(protocol, dict):
        raise UserError(
            f"{path}: its 'protocol' is {protocol!r}, expected a dictionary: write it again, or leave it out"
        )
    return protocol
