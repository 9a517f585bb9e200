"""Photographs to training squares and back, pixel for pixel as the reference pipeline does it.

Opening ignores the EXIF rotation tag, as the reference does: a photograph stored sideways trains sideways. Cropping is ADM's
`center_crop_arr`. Going back to uint8 truncates 127.5 x + 128 instead of rounding: the FID suite has only ever seen that.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, UnidentifiedImageError

from dit.errors import UserError

# What torchvision's ImageFolder takes for images.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class BrokenImage(Exception):
    """A file that cannot be decoded to the end; the message is the reason, without the path."""


def open_rgb(path: str | Path) -> Image.Image:
    """The whole image in RGB: greyscale is repeated, CMYK and palettes are converted, transparency is dropped.

    Raises BrokenImage where the file is not an image, is cut short, or is too large to be one.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "P" and "transparency" in image.info:
                # The same RGB values by a way that does not warn.
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise BrokenImage("not an image") from None
    # Decoders report damage by whatever goes wrong first.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, Image.DecompressionBombError) as error:
        raise BrokenImage(" ".join(str(error).split()) or type(error).__name__) from error


def center_crop(image: Image.Image, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The central square, `size` pixels a side: box halving while the short side is at least twice that, then bicubic to it.

    The reference is guided-diffusion's `center_crop_arr` [Dhariwal and Nichol 2021].
    """
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
        raise UserError("a decoded image holds values that are not numbers; the latents or the autoencoder are broken")
    return np.clip(np.float32(127.5) * images + np.float32(128), 0, 255).astype(np.uint8)
