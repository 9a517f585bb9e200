"""Photographs to training squares and back, pixel for pixel as the reference pipeline does it; and which files are photographs.

The rules here are those of `encode`, `evaluate` and `reference` alike. Of a folder, files with an image's ending are taken; hidden files
and folders, and those that systems leave beside images, are left out and counted. 8-bit and 1-bit images are taken as they are, of 16-bit
ones the upper eight bits, as Pillow does for colour. 32-bit and floating-point images are refused, since no file says what is white, and
so are files of several frames. Opening ignores the EXIF rotation tag, as the reference does: a photograph stored sideways trains
sideways. Cropping is ADM's `center_crop_arr`. Going back to uint8 truncates 127.5 x + 128 instead of rounding: the FID suite has only
ever seen that.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, UnidentifiedImageError

from dit.errors import UserError
from dit.store.paths import open_regular

# What torchvision's ImageFolder takes for images.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


# What Windows, macOS, Synology and others put beside images; names that begin with a dot are left out as well.
_SYSTEM_NAMES = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
_MOST_PIXELS = 89_478_485  # Pillow's own limit, above which it warns
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_MOST_BYTES = 2**29
_MOST_SCALED = 2**26
_HIGH_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Found:
    """Image files under a folder, sorted by path, and how many others were left out."""

    paths: tuple[Path, ...]
    hidden: int = 0
    others: int = 0


def say(images: int, hidden: int, others: int, loose: int = 0) -> str:
    """What was found, in a line; `loose` are images in no class folder."""
    counts = ((hidden, "hidden or the system's"), (others, "without an image's ending"), (loose, "in no class folder"))
    left = ", ".join(f"{count:,} {why}" for count, why in counts if count)
    return f"{images:,} images" + (f", left out {left}" if left else "")


def find_files(folder: Path) -> Found:
    """The image files anywhere under a folder; what lies in a hidden folder counts one by one as hidden."""
    paths, hidden, others = [], 0, 0
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        if any(is_hidden(part) for part in path.relative_to(folder).parts):
            hidden += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            paths.append(path)
        else:
            others += 1
    return Found(tuple(sorted(paths)), hidden, others)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is no part of a data set."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


class BrokenImage(Exception):
    """A file that cannot be decoded to the end; the message is the reason, without the path."""


def open_rgb(path: str | Path) -> Image.Image:
    """The whole image in RGB: greyscale is repeated, CMYK and palettes are converted, transparency is dropped.

    Raises BrokenImage where the file is not an image, is cut short, too large to be one, or holds what has no one meaning in 8 bits.
    """
    try:
        with open_regular(Path(path)) as file:
            if (size := os.fstat(file.fileno()).st_size) > _MOST_BYTES:
                raise BrokenImage(f"{size:,} bytes, more than {_MOST_BYTES:,}: too large to be one image")
            data = file.read()  # whole, since decoders make room for as many bytes as a file says that it has
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise BrokenImage(
                    f"{image.width}x{image.height} pixels, more than {_MOST_PIXELS:,}: too large to be one image"
                )
            # A photograph in MPO has its preview behind it; elsewhere frames are images of their own.
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                raise BrokenImage(f"{frames} frames, expected one image: save them one by one")
            if image.mode[0] in "IF":
                return _eight_bits(image)
            if image.mode == "P" and "transparency" in image.info:
                # The same RGB values by a way that does not warn.
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise BrokenImage("not an image") from None
    # Decoders report damage by whatever goes wrong first.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, *_BOMBS) as error:
        raise BrokenImage(" ".join(str(error).split()) or type(error).__name__) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """The upper eight of 16 bits (12 in some TIFF files), in RGB.

    Raises BrokenImage for 32-bit and floating-point values.
    """
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, 16)
    bits = bits[0] if isinstance(bits, tuple) else bits
    if (image.mode not in _HIGH_BITS and image.format != "PPM") or bits not in (12, 16):
        signed = "signed " if tags.get(339) in (2, (2,)) else ""
        kind = "floating-point" if image.mode[0] == "F" else f"{signed}{bits if tags else 32}-bit"
        raise BrokenImage(f"{kind} values, of which no file says what is white: save it in 8 or 16 bits")
    pixels = (np.asarray(image).astype(np.int32) >> (bits - 8)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(255 - pixels if tags.get(262) == 0 else pixels).convert("RGB")


def center_crop(image: Image.Image, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The central square, `size` pixels a side: box halving while the short side is at least twice that, then bicubic to it.

    The reference is guided-diffusion's `center_crop_arr` [Dhariwal and Nichol 2021]. Raises BrokenImage for an image so thin that scaling
    its short side would make its long side absurd.
    """
    if size * size * max(image.size) > _MOST_SCALED * min(image.size):
        raise BrokenImage(f"{image.width}x{image.height} pixels, too thin to scale its short side to {size}")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    pixels = np.asarray(image.resize(scaled, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def load_square(path: str | Path, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """`center_crop` of the file at `path`. Raises BrokenImage."""
    return center_crop(open_rgb(path), size)


def to_model(pixels: UInt8[np.ndarray | jax.Array, "*shape"]) -> Float32[np.ndarray | jax.Array, "*shape"]:
    """uint8 to [-1, 1]: (x / 255 - 0.5) / 0.5, in float32 and in that order, as ToTensor and Normalize do. NumPy or JAX."""
    return (pixels.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def to_uint8(images: Float32[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """[-1, 1] to uint8 by truncating clamp(127.5 x + 128, 0, 255); a value that is not a number is an error."""
    if not np.isfinite(images).all():
        raise UserError(
            "an image holds values that are not numbers: look at the model, its objective and sampler, or the autoencoder"
        )
    return np.clip(np.float32(127.5) * images + np.float32(128), 0, 255).astype(np.uint8)
