"""Scores of a run's samples, with the protocol that makes them comparable.

A scorer holds one feature extractor, statistics of the real images under it, and the floor: the distance between one half of the real
images and the other, which no model can be expected to beat by much. Of latents it also holds the decoder, and no floor: reference
statistics do not tell it.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from dit.data.batches import load_images
from dit.data.decoding import Decoder, open_decoder
from dit.data.images import to_uint8
from dit.data.shards import open_latents
from dit.design.config import DataConfig, Evaluation, RunArguments, RunConfig, digest
from dit.design.features import Features, features_of
from dit.design.metrics import INCEPTION, metric
from dit.design.parts import find
from dit.errors import UserError
from dit.score import reference
from dit.score.evaluation import Statistics, take_in
from dit.score.features import Extractor, make_extractor
from dit.score.metrics.frechet import Gaussian, frechet_distance
from dit.score.metrics.moments import Moments
from dit.score.metrics.precision_recall import REFERENCES
from dit.score.reference import Reference
from dit.score.scores import score

BATCH_SIZE = 64
"""Images per dispatch of the Inception network."""
SMALL_BATCH_SIZE = 256
"""The same of features of small images."""
REHEARSED = 64
"""Images of noise on which what is the user's own is tried before anything is trained."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores by the names of their metrics, and the first images (NHWC, uint8) with their labels."""

    scores: dict[str, float]
    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Scorer:
    """An extractor with the real images' statistics under it."""

    extractor: Extractor
    real: Reference
    reference_sha256: str
    floor: float | None
    reference_name: str
    decoder: Decoder | None = None

    def images(self, drawn: Float32[np.ndarray, "B I I C"]) -> UInt8[np.ndarray, "B height width channels"]:
        """What a model drew, as images.

        Raises:
            UserError: if a value is not a number.
        """
        return to_uint8(drawn) if self.decoder is None else self.decoder.images(drawn)

    def statistics(self, metrics: tuple[str, ...], num_samples: int) -> Statistics:
        """What to gather of the samples for these metrics, empty."""
        chosen = [metric(name) for name in metrics]
        keep = num_samples if any(one.keeps_features for one in chosen) else 0
        return Statistics(keep=keep, take={need for one in chosen for need in one.needs})

    def scores(self, statistics: Statistics, metrics: tuple[str, ...]) -> dict[str, float]:
        """The metrics by their names.

        Raises:
            UserError: for one that cannot be taken, breaks, or is not finite.
        """
        return {name: one.value for name, one in score(statistics, self.real, metrics, required=True).items()}  # type: ignore[misc]

    def rehearse(self, evaluation: Evaluation, data: DataConfig) -> None:
        """Score a few images of noise, so that what is wrong with a user's own features or metrics is known before a run is trained.

        Raises:
            UserError: as `scores`, or for features that are not finite.
        """
        if any("@" in name for name in (evaluation.features, *evaluation.metrics)):
            shape = (min(REHEARSED, evaluation.num_samples), data.image_size, data.image_size, self.extractor.channels)
            noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            statistics = self.statistics(evaluation.metrics, len(noise))
            statistics.add(self.extractor.extract(noise))
            self.scores(statistics, evaluation.metrics)

    def protocol(self, run: RunConfig, evaluation: Evaluation) -> dict[str, Any]:
        """Everything under which scores are taken, whichever metrics; two scores compare only if these are equal."""
        return {
            **evaluation.declared,
            "extractor": self.extractor.name,
            "extractor_sha256": self.extractor.weights_sha256,
            "resize": self.extractor.resize,
            "reference": self.reference_name,
            "reference_sha256": self.reference_sha256,
            "metric": evaluation.metric,
            "timesteps": run.diffusion.timesteps,
            **({"decoder_sha256": self.decoder.sha256} if self.decoder else {}),
        }


def protocol_hash(protocol: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for a protocol."""
    return digest(protocol)


def open_scorer(run: RunConfig, evaluation: Evaluation, arguments: RunArguments) -> Scorer:
    """The scorer of an evaluation of the run; made once per process.

    Raises:
        UserError: for features or metrics that it cannot have, a path that is missing or does not fit, or decoded latents of which the
            evaluation does not say under which decoder they are.
    """
    features = features_of(run, evaluation.features)
    if not run.data.is_latent:
        return scorer(evaluation.features, run.data.name, arguments.inception, run.data.source)
    for option, path in (("vae", arguments.vae), ("reference", arguments.reference)):
        if not path:
            raise UserError(
                f"an evaluation of step {evaluation.step} scores {features.label} features: give --{option}, see docs/imagenet.md"
            )
    if evaluation.decoder == "none":
        raise UserError(
            f"the evaluation of step {evaluation.step} declares no decoder, but latents are decoded: name it in the study"
        )
    judge = _of_decoded(evaluation.features, run.data, arguments.vae, arguments.inception, arguments.reference)
    if arguments.data and judge.decoder is not None:
        settings = open_latents(arguments.data, verify=False)[1].settings
        trained, decoded = (settings.latent_scale, settings.latent_shift), judge.decoder.factors
        if trained != decoded:
            raise UserError(
                f"{arguments.data} holds latents for the scale and shift {trained}, the autoencoder {arguments.vae} has {decoded}: "
                "give the one that made them"
            )
    return judge


@functools.lru_cache(maxsize=1)
def _of_decoded(features: str, data: DataConfig, vae: str, inception: str, real_images: str) -> Scorer:
    """Kept from one cell to the next."""
    extractor = _extractor(features, inception)
    decoder: Decoder = open_decoder(vae, data)
    real = reference.load(real_images, extractor, BATCH_SIZE)
    return Scorer(extractor, real, real.sha256, None, real.made_by["source"], decoder)


@functools.cache
def scorer(features: str, data: str = "", inception: str = "", source: str = "") -> Scorer:
    """The scorer of images that need no decoder, against the data set `data` (by default the one that the features are named after).

    Raises:
        UserError: for features that nothing here has.
    """
    extractor, data = _extractor(features, inception), data or features
    images, _ = load_images(data, source)
    statistics = Statistics(keep=REFERENCES)  # in each process by itself, so that all have the same bits
    starts = range(0, len(images), SMALL_BATCH_SIZE)
    take_in(statistics, extractor, (images[i : i + SMALL_BATCH_SIZE] for i in starts), lambda: None)
    real = reference.from_statistics(statistics, reference.made_by(extractor, data, "", len(images)))
    order = np.random.default_rng(0).permutation(len(real.features))
    half = len(order) // 2
    floor = frechet_distance(_gaussian(real.features[order[:half]]), _gaussian(real.features[order[half:]]))
    sha256 = hashlib.sha256(images.tobytes() + extractor.weights_sha256.encode()).hexdigest()
    return Scorer(extractor, real, sha256, floor, data)


def _extractor(features: str, inception: str) -> Extractor:
    if find(Features, features).name != INCEPTION:
        return make_extractor(features, None, SMALL_BATCH_SIZE)
    if inception.startswith("random:"):
        raise UserError(f"--inception {inception}: random weights score nothing; give the published file")
    return make_extractor(features, inception or None, BATCH_SIZE)


def _gaussian(features: np.ndarray) -> Gaussian:
    return Moments(features.shape[1]).update(features).gaussian()
