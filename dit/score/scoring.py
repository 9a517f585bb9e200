"""Scores of a run's samples, with the protocol that makes them comparable.

A scorer holds one feature extractor, the statistics of the whole real data set under it, and the floor: the distance between one
half of the real images and the other, which no model can be expected to beat by much. Of latents it also holds the decoder, and no floor:
reference statistics do not tell it.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit.data.batches import load_images
from dit.data.decoding import Decoder
from dit.design.config import Evaluation, RunConfig, digest
from dit.errors import UserError
from dit.score.classifier import small_image_extractor
from dit.score.features import Extractor
from dit.score.metrics.frechet import Gaussian, frechet_distance
from dit.score.metrics.moments import Moments


@dataclass(frozen=True, eq=False)
class Scorer:
    """An extractor with the real images' statistics under it."""

    extractor: Extractor
    reference: Gaussian
    reference_sha256: str
    floor: float | None
    decoder: Decoder | None = None
    reference_name: str | None = None

    def score(self, images: UInt8[np.ndarray, "B H W C"]) -> float:
        """Fréchet distance of the images' pooled features to those of the whole real set."""
        return frechet_distance(_gaussian(self.extractor.extract(images).pooled), self.reference)

    def distance(self, moments: Moments) -> float:
        """As `score`, of the moments of pooled features."""
        return frechet_distance(moments.gaussian(), self.reference)

    def protocol(self, run: RunConfig, evaluation: Evaluation) -> dict[str, Any]:
        """Everything under which a score is taken; two scores compare only if these are equal."""
        return {
            **evaluation.declared,
            "extractor": self.extractor.name,
            "extractor_sha256": self.extractor.weights_sha256,
            "resize": self.extractor.resize,
            "reference": self.reference_name or run.data.name,
            "reference_sha256": self.reference_sha256,
            "metric": evaluation.metric,
            "timesteps": run.diffusion.timesteps,
            **({"decoder_sha256": self.decoder.sha256} if self.decoder else {}),
        }


def protocol_hash(protocol: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for a protocol."""
    return digest(protocol)


def require_features(features: str) -> None:
    """Check that `scorer` has these features.

    Raises:
        UserError: for features that no extractor here provides.
    """
    if features not in ("digits", "mnist"):
        raise UserError(
            f"features '{features}' cannot be scored here: expected digits or mnist, or inception for runs on latents; "
            "score saved samples of other data with `dit evaluate`"
        )


@functools.cache
def scorer(features: str) -> Scorer:
    """The scorer of the small-image features named after a data set; made once per process.

    Raises:
        UserError: as `require_features`.
    """
    require_features(features)
    extractor = small_image_extractor(features)
    images, _ = load_images(features)
    pooled = extractor.extract(images).pooled
    order = np.random.default_rng(0).permutation(len(pooled))
    half = len(pooled) // 2
    floor = frechet_distance(_gaussian(pooled[order[:half]]), _gaussian(pooled[order[half:]]))
    sha256 = hashlib.sha256(images.tobytes() + extractor.weights_sha256.encode()).hexdigest()
    return Scorer(extractor, _gaussian(pooled), sha256, floor)


def _gaussian(features: np.ndarray) -> Gaussian:
    return Moments(features.shape[1]).update(features).gaussian()
