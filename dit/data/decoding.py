"""From what a model draws to images: latents through an autoencoder's decoder, pixels as they are, both truncated to uint8.

Latents as a model sees them are shifted and scaled by the autoencoder's own factors; that is undone here. Every batch has one compiled
shape and is split over the local devices, so memory does not grow with the number of images. Decoding is in full float32 products.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, UInt8

from dit.data.images import to_uint8
from dit.design.config import DataConfig
from dit.errors import UserError
from dit.weights.vae import AutoencoderKL
from dit.weights.vae_weights import load_vae


@dataclass(frozen=True, eq=False)
class Decoder:
    """An autoencoder's decoder; `name` is its folder's, `sha256` that of its weights file."""

    vae: AutoencoderKL
    name: str
    sha256: str

    def images(self, latents: Float32[np.ndarray, "B h w Z"]) -> UInt8[np.ndarray, "B H W C"]:
        """Images of scaled latents, in order.

        Raises:
            UserError: if a value is not a number.
        """
        compiled, state, split, size = self._compiled
        parts = []
        for start in range(0, len(latents), size):
            batch = latents[start : start + size]
            padded = np.pad(batch, [(0, size - len(batch))] + [(0, 0)] * 3)
            parts.append(to_uint8(np.asarray(compiled(state, jax.device_put(padded, split)))[: len(batch)]))
        return np.concatenate(parts)

    @property
    def factors(self) -> tuple[float, float]:
        """Scale and shift of the latents that it takes."""
        return self.vae.config.scaling_factor, self.vae.config.shift_factor

    @functools.cached_property
    def _compiled(self) -> tuple[Any, Any, NamedSharding, int]:
        graph, state = nnx.split(self.vae)
        config = self.vae.config
        devices = jax.local_devices()
        mesh = Mesh(np.array(devices), ("batch",))
        split, whole = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())
        # Stable Diffusion's decoder wants about 0.6 GB of activations an image at 256 px.
        size = len(devices) * (4 if devices[0].platform == "cpu" else 16)

        def decode(state: Any, latents: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
            return nnx.merge(graph, state).decode(config.unscaled(latents))

        return jax.jit(decode, out_shardings=split), jax.device_put(state, whole), split, size


def open_decoder(path: str | Path, data: DataConfig) -> Decoder:
    """The decoder at `path` (a diffusers folder or a weights file), once it fits the data set's latents.

    Raises:
        UserError: if there is none, or its latents are of another size or number of channels.
    """
    vae, sha256 = load_vae(path)
    config = vae.config
    ours = (data.input_size, data.in_channels)
    theirs = (data.image_size // config.downsampling, config.latent_channels)
    if ours != theirs or data.image_size % config.downsampling:
        raise UserError(
            f"the autoencoder {path} makes {theirs[0]}x{theirs[0]}x{theirs[1]} latents of {data.image_size} px images, the model's are "
            f"{ours[0]}x{ours[0]}x{ours[1]}: give the autoencoder that the latents were made with"
        )
    if config.out_channels != 3:
        raise UserError(f"the autoencoder {path} decodes to {config.out_channels} channels: expected 3, for RGB images")
    given = Path(path)
    return Decoder(vae, given.name if given.is_dir() else given.stem, sha256)


def to_images(drawn: Float32[np.ndarray, "B I I C"], decoder: Decoder | None) -> UInt8[np.ndarray, "B H W D"]:
    """Drawn latents or pixels as images.

    Raises:
        UserError: if a value is not a number.
    """
    return to_uint8(drawn) if decoder is None else decoder.images(drawn)
