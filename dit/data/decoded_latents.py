"""Encoded images as images again: each record's posterior mean through an autoencoder's decoder, without its mirror, in order.

A reference made of them is what a perfect model of the latents could reach: it lacks what the autoencoder loses, and its hash holds the
decoder's, so its scores never compare with those against the original images.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dit.data.decoding import Decoder, open_decoder
from dit.data.image_sets import ImageSet
from dit.data.latents import LatentSource
from dit.data.shards import open_latents
from dit.design.config import DataConfig


class DecodedLatents(ImageSet):
    """The images of a folder of latents as a decoder gives them back, in the order of the records."""

    def __init__(self, source: LatentSource, decoder: Decoder, name: str):
        self._latents, self._decoder = source, decoder
        self.source = f"{name} decoded by {decoder.name}"
        self.protocol = {}

    def __len__(self) -> int:
        return len(self._latents)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the latents' manifest and the decoder's weights, which decide every pixel up to rounding."""
        return hashlib.sha256(f"{self._latents.manifest.identity} {self._decoder.sha256}".encode()).hexdigest()

    def batches(self, size: int, start: int, stop: int) -> Iterator[UInt8[np.ndarray, "B height width channels"]]:
        config = self._decoder.vae.config
        for at in range(start, stop, size):
            records = (self._latents[index] for index in range(at, min(at + size, stop)))
            means = np.stack([record.moments[0, 0] for record in records]).astype(np.float32)
            yield self._decoder.images(config.scaled(means))


def open_decoded(folder: str, vae: Path) -> DecodedLatents:
    """The latents of `dit encode` in `folder` (or at a URL), decoded by the autoencoder at `vae`.

    Raises:
        UserError: if there are no latents, a shard is damaged, or the autoencoder does not fit them.
    """
    local, manifest = open_latents(folder)
    settings = manifest.settings
    data = DataConfig(
        "latents", settings.image_size, settings.latent_size, settings.latent_channels, manifest.num_classes
    )
    # Another decoder than the one that encoded is legitimate: ft-MSE and ft-EMA share their encoder.
    decoder = open_decoder(vae, data)
    return DecodedLatents(LatentSource(local, manifest), decoder, Path(folder).name)
