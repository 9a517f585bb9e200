"""What a run on latents takes from the user's disk to train on, opened and checked before anything is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int32

from dit.data.batches import Dataset
from dit.data.latents import LatentDataset
from dit.data.shards import MANIFEST, Manifest, open_latents
from dit.design.config import DataConfig, RunArguments, RunConfig
from dit.errors import UserError
from dit.weights.vae import LATENT_SCALE


def open_training_data(
    run: RunConfig, arguments: RunArguments, rows: Int32[np.ndarray, " R"] | None = None
) -> LatentDataset:
    """The run's batches of latents, of which this process takes `rows`.

    Raises:
        UserError: if there are none, a shard is damaged, or they do not fit the run.
    """
    if not arguments.data:
        raise UserError(
            f"data set '{run.data.name}' is latents of your own images: give their folder with --data (dit encode makes it)"
        )
    _, manifest = open_latents(arguments.data)
    check_fit(manifest, run.data, arguments.data)
    return LatentDataset(arguments.data, run.batch_size, run.seed, rows, verify=False)


def identity(dataset: Dataset) -> dict[str, Any]:
    """What tells these latents from all others: hashes of their manifest, which has each shard's, and of the autoencoder.

    The scale and shift are there where they are not Stable Diffusion's, for whoever decodes.
    """
    assert isinstance(dataset, LatentDataset)
    settings = dataset.manifest.settings
    factors = (settings.latent_scale, settings.latent_shift)
    said = {} if factors == (LATENT_SCALE, 0.0) else {"latent_factors": list(factors)}
    return {"latents": dataset.manifest.identity, "vae_sha256": settings.vae_sha256, **said}


def check_fit(manifest: Manifest, data: DataConfig, source: str) -> None:
    """Whether the encoded images are what the data set declares.

    Raises:
        UserError: naming what differs.
    """
    settings = manifest.settings
    for name, given, expected in (
        ("image_size", settings.image_size, data.image_size),
        ("latent_size", settings.latent_size, data.input_size),
        ("latent_channels", settings.latent_channels, data.in_channels),
    ):
        if given != expected:
            raise UserError(
                f"{source}/{MANIFEST}: {name} is {given}, data set '{data.name}' needs {expected}: encode the images for it"
            )
    if manifest.num_classes > data.num_classes:
        raise UserError(
            f"{source}/{MANIFEST}: {manifest.num_classes} classes, data set '{data.name}' has {data.num_classes}: declare one of its own"
        )
