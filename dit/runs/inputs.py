"""What a run on latents takes from the user's disk: encoded images to train on, and all that a score of decoded samples needs.

Everything is opened and checked before anything is compiled. Imported only by runs on latents: small images need none of it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import Int32

from dit.data.batches import Dataset
from dit.data.decoding import Decoder, open_decoder
from dit.data.latents import LatentDataset
from dit.data.shards import MANIFEST, Manifest, open_latents
from dit.design.config import DataConfig, Evaluation, RunArguments, RunConfig
from dit.errors import UserError
from dit.score.features import make_extractor
from dit.score.reference import load
from dit.score.scoring import Scorer
from dit.weights.vae import LATENT_SCALE

BATCH_SIZE = 64
"""Images per dispatch of the feature extractor."""


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


def open_scorer(run: RunConfig, evaluation: Evaluation, arguments: RunArguments) -> Scorer:
    """The scorer of decoded samples under Inception features.

    Raises:
        UserError: for a path that is missing or does not fit, or an evaluation that does not say which decoder it is under.
    """
    if evaluation.features != "inception":
        raise UserError(
            f"features '{evaluation.features}' cannot score images decoded from latents: expected inception"
        )
    for option, path in (("vae", arguments.vae), ("reference", arguments.reference)):
        if not path:
            raise UserError(
                f"an evaluation of step {evaluation.step} scores Inception features: give --{option}, see docs/imagenet.md"
            )
    if evaluation.decoder == "none":
        raise UserError(
            f"the evaluation of step {evaluation.step} declares no decoder, but latents are decoded: name it in the study"
        )
    scorer = _scorer(run.data, arguments.vae, arguments.inception, arguments.reference)
    if arguments.data and scorer.decoder is not None:
        settings = open_latents(arguments.data, verify=False)[1].settings
        trained, decoded = (settings.latent_scale, settings.latent_shift), scorer.decoder.factors
        if trained != decoded:
            raise UserError(
                f"{arguments.data} holds latents for the scale and shift {trained}, the autoencoder {arguments.vae} has {decoded}: "
                "give the one that made them"
            )
    return scorer


@functools.lru_cache(maxsize=1)
def _scorer(data: DataConfig, vae: str, inception: str, reference: str) -> Scorer:
    """Kept from one cell to the next."""
    if inception.startswith("random:"):
        raise UserError(f"--inception {inception}: random weights score nothing; give the published file")
    extractor = make_extractor("inception", inception or None, BATCH_SIZE)
    decoder: Decoder = open_decoder(vae, data)
    real = load(reference, extractor, BATCH_SIZE)
    return Scorer(extractor, real.pooled, real.sha256, None, decoder, real.made_by["source"])
