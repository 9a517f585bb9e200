"""Statistics of real images that samples are compared with, and the protocol they were made under.

A file of ours is an `.npz` with ADM's names (`mu`, `sigma`, `mu_s`, `sigma_s`), the pooled features of the first images for precision,
recall and KID (`features`), and `made_by`, JSON text: extractor, hash of its weights, resize, number of images, hash of the source.
Statistics made by another extractor, other weights or another resize are refused.

ADM's own batches are read as they are: `arr_0` gives features, and statistics where they are not included; those included are over the
whole data set, by the published Inception with its own resize. A bare `mu`/`sigma` file (pytorch-fid) does not say what made it, and
pytorch-fid resizes differently from TensorFlow 1: it is taken only through `declare`, once somebody says which.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dit.data.image_sets import ImageSet, open_images
from dit.design.config import digest
from dit.errors import UserError
from dit.score import inception
from dit.score.evaluation import Report, Statistics, gather
from dit.score.features import Extractor
from dit.score.metrics.frechet import Gaussian
from dit.score.metrics.precision_recall import REFERENCES
from dit.store.arrays import read_arrays, reading
from dit.store.files import whole

ANY_WEIGHTS = "published"
"""Stands for the hash of weights in files made elsewhere, which do not record one."""

_MADE_BY = {"extractor", "extractor_sha256", "resize", "num_images", "source", "source_sha256"}


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of real images. `features` is empty where only moments are known; `made_by` is the protocol."""

    pooled: Gaussian
    spatial: Gaussian | None
    features: Float32[np.ndarray, "R F"]
    made_by: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of the protocol, which holds the hash of the images: the same images, extractor and resize are the same reference."""
        return digest(self.made_by, 64)


def made_by(extractor: Extractor, source: str, source_sha256: str, num_images: int | None) -> dict[str, Any]:
    """The protocol that a reference records."""
    return {
        "extractor": extractor.name,
        "extractor_sha256": extractor.weights_sha256,
        "resize": extractor.resize,
        "num_images": num_images,
        "source": source,
        "source_sha256": source_sha256,
    }


def make(
    extractor: Extractor, images: ImageSet, batch_size: int, partial: Path | None = None, report: Report | None = None
) -> Reference:
    """Statistics of all the images, and features of the first 10,000."""
    statistics = gather(extractor, images, batch_size, keep=REFERENCES, partial=partial, report=report)
    return from_statistics(statistics, made_by(extractor, images.source, images.sha256, len(images)))


def from_statistics(statistics: Statistics, protocol: dict[str, Any]) -> Reference:
    """A reference out of what a pass over its images left."""
    spatial = None if statistics.spatial is None else statistics.spatial.gaussian()
    return Reference(statistics.pooled.gaussian(), spatial, np.array(statistics.features), protocol)


def save(path: Path, reference: Reference) -> None:
    """Write a reference, whole or not at all."""
    arrays = {"mu": reference.pooled.mean, "sigma": reference.pooled.covariance, "features": reference.features}
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    with whole(path) as beside, beside.open("wb") as file:
        np.savez(file, allow_pickle=False, made_by=json.dumps(reference.made_by), **arrays)


def declare(path: Path, extractor_name: str, resize: str) -> Reference:
    """A bare `mu`/`sigma` file, with what made it as somebody says.

    Raises:
        UserError: if the file already says so itself, or holds no statistics.
    """
    names = _names_in(path)
    if {"made_by", "arr_0"} & names:
        raise UserError(
            f"{path} says itself what made it: declare only bare mu/sigma files, or drop --made-with-resize"
        )
    return _from_arrays(path, _declared(path, extractor_name, resize))


def load(
    source: str,
    extractor: Extractor,
    batch_size: int,
    partial: Path | None = None,
    report: Report | None = None,
    say: Callable[[str], None] | None = None,
) -> Reference:
    """The reference that a path or a data set's name stands for, made where it is given as images.

    Raises:
        UserError: if it cannot be read, or was made by another extractor, other weights or another resize.
    """
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        names = _names_in(path)
        if "made_by" in names:
            reference = _from_arrays(path, _made_by(path))
            _refuse_other(reference, extractor, path)
            return reference
        if "mu" in names and "arr_0" not in names and "mu_s" not in names:
            raise UserError(
                f"{path} holds bare mu and sigma, which do not say what made them: "
                f"declare it with `dit reference {path} --made-with-resize {extractor.resize} --out NEW.npz` if so it is"
            )
        if "mu" in names:
            return _from_adm(path, extractor, batch_size, report, with_images="arr_0" in names)
    images = open_images(source, extractor.channels)
    if say and images.said:
        say(images.said)
    if say:
        say(f"making statistics of {len(images):,} images of {images.source}; `dit reference` keeps them")
    return make(extractor, images, batch_size, partial, report)


def _names_in(path: Path) -> set[str]:
    """Names of the arrays in an `.npz`."""
    with reading(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _declared(path: Path, extractor_name: str, resize: str) -> dict[str, Any]:
    """The protocol of statistics made elsewhere."""
    return {
        "extractor": extractor_name,
        "extractor_sha256": ANY_WEIGHTS,
        "resize": resize,
        "num_images": None,
        "source": path.name,
        "source_sha256": _file_hash(path),
    }


def _made_by(path: Path) -> dict[str, Any]:
    """The protocol that a file of ours records."""
    try:
        protocol = json.loads(str(read_arrays(path, ("made_by",))["made_by"]))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: its 'made_by' is not JSON ({error}): make the file again with `dit reference`"
        ) from error
    if not isinstance(protocol, dict) or not protocol.keys() >= _MADE_BY:
        raise UserError(
            f"{path}: its 'made_by' lacks some of {', '.join(sorted(_MADE_BY))}: make the file again with `dit reference`"
        )
    count = protocol["num_images"]
    if count is not None and (type(count) is not int or count < 1):
        raise UserError(
            f"{path}: its num_images is {str(count)[:40]!r}, expected a whole number above 0: make the file again"
        )
    wrong = next((name for name in sorted(_MADE_BY - {"num_images"}) if not isinstance(protocol[name], str)), None)
    if wrong is not None:
        raise UserError(f"{path}: its {wrong} is {str(protocol[wrong])[:40]!r}, expected a text: make the file again")
    return protocol


def _from_adm(path: Path, extractor: Extractor, batch_size: int, report: Report | None, with_images: bool) -> Reference:
    """ADM's batch: statistics as included, features of its images."""
    reference = _from_arrays(path, _declared(path, inception.NAME, inception.RESIZE))
    _refuse_other(reference, extractor, path)
    if not with_images:
        return reference
    kept = _features(extractor, open_images(str(path), extractor.channels), batch_size, report)
    return Reference(reference.pooled, reference.spatial, kept, reference.made_by)


def _features(extractor: Extractor, images: ImageSet, batch_size: int, report: Report | None) -> np.ndarray:
    count = min(REFERENCES, len(images))
    return gather(extractor, images, batch_size, count, keep=count, report=report).features


def _from_arrays(path: Path, protocol: dict[str, Any]) -> Reference:
    arrays = read_arrays(path, ("mu", "sigma", "mu_s", "sigma_s", "features"))
    missing = [name for name in ("mu", "sigma") if name not in arrays]
    if missing:
        raise UserError(
            f"{path} lacks '{missing[0]}': expected statistics mu and sigma, make the file again with `dit reference`"
        )
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise UserError(f"{path}: '{name}' holds {array.dtype}, expected numbers: make the file again")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: '{name}' holds values that are not finite: make the file again")
    count = protocol["num_images"]
    pooled = _gaussian(path, arrays, "", count)
    spatial = _gaussian(path, arrays, "_s", count) if "mu_s" in arrays else None
    features = arrays.get("features", np.empty((0, len(pooled.mean)), np.float32)).astype(np.float32, copy=False)
    if features.ndim != 2 or features.shape[1] != len(pooled.mean):
        raise UserError(
            f"{path}: 'features' has shape {features.shape}, expected (images, {len(pooled.mean)}): make the file again"
        )
    return Reference(pooled, spatial, features, protocol)


def _gaussian(path: Path, arrays: dict[str, np.ndarray], ending: str, count: int | None) -> Gaussian:
    """Mean and covariance of a file, once they can be some distribution's.

    Rounding to float32 moves an eigenvalue by 6e-8 of the trace at most, so anything beyond 1e-6 of it is no rounding.
    """
    mean, sigma = arrays[f"mu{ending}"].astype(np.float64), arrays.get(f"sigma{ending}", np.empty(0)).astype(np.float64)
    if mean.ndim != 1 or sigma.shape != (len(mean), len(mean)) or not len(mean):
        raise UserError(
            f"{path}: 'mu{ending}' has shape {mean.shape}, 'sigma{ending}' {sigma.shape}, expected (F,) and (F, F): make the file again"
        )
    slack = 1e-6 * max(float(np.trace(sigma)), 0.0)
    if np.abs(sigma - sigma.T).max() > slack:
        raise UserError(f"{path}: 'sigma{ending}' is not symmetric, as every covariance is: make the file again")
    try:
        np.linalg.cholesky(sigma + (slack + np.finfo(np.float64).tiny) * np.eye(len(sigma)))
    except np.linalg.LinAlgError:
        raise UserError(
            f"{path}: 'sigma{ending}' has a negative variance in some direction: make the file again"
        ) from None
    return Gaussian(mean, sigma, count)


def _refuse_other(reference: Reference, extractor: Extractor, path: Path) -> None:
    theirs, ours = reference.made_by, (extractor.name, extractor.weights_sha256, extractor.resize)
    for what, one, other in (
        ("by extractor", theirs["extractor"], ours[0]),
        ("with weights", theirs["extractor_sha256"], ours[1]),
        ("with resize", theirs["resize"], ours[2]),
    ):
        if one != other and one != ANY_WEIGHTS:
            raise UserError(
                f"{path} was made {what} {one}, samples are scored {what} {other}: such scores do not compare, "
                "make the reference again with the same --extractor and --weights"
            )


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
