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
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dit.data.image_sets import ImageSet, open_images, reading
from dit.design.config import digest
from dit.errors import UserError
from dit.score import inception
from dit.score.evaluation import Report, Statistics, gather
from dit.score.features import Extractor
from dit.score.metrics.frechet import Gaussian
from dit.score.metrics.precision_recall import REFERENCES

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
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        np.savez(file, allow_pickle=False, made_by=json.dumps(reference.made_by), **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def declare(path: Path, extractor_name: str, resize: str) -> Reference:
    """A bare `mu`/`sigma` file, with what made it as somebody says.

    Raises:
        UserError: if the file already says so itself, or holds no statistics.
    """
    with _arrays(path) as arrays:
        if "made_by" in arrays.files or "arr_0" in arrays.files:
            raise UserError(
                f"{path} says itself what made it: declare only bare mu/sigma files, or drop --made-with-resize"
            )
        protocol = {
            "extractor": extractor_name,
            "extractor_sha256": ANY_WEIGHTS,
            "resize": resize,
            "num_images": None,
            "source": path.name,
            "source_sha256": _file_hash(path),
        }
        return _from_arrays(arrays, path, protocol)


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
        with _arrays(path) as arrays:
            names = arrays.files
            if "made_by" in names:
                reference = _from_arrays(arrays, path, _made_by(arrays, path))
                _refuse_other(reference, extractor, path)
                return reference
            if "mu" in names and "arr_0" not in names and "mu_s" not in names:
                raise UserError(
                    f"{path} holds bare mu and sigma, which do not say what made them: "
                    f"declare it with `dit reference {path} --made-with-resize {extractor.resize} --out NEW.npz` if so it is"
                )
            if "mu" in names:
                return _from_adm(arrays, path, extractor, batch_size, report)
    images = open_images(source, extractor.channels)
    if say:
        say(f"making statistics of {len(images):,} images of {images.source}; `dit reference` keeps them")
    return make(extractor, images, batch_size, partial, report)


def _made_by(arrays: Any, path: Path) -> dict[str, Any]:
    """The protocol that a file of ours records."""
    try:
        protocol = json.loads(str(arrays["made_by"]))
    except ValueError as error:
        raise UserError(
            f"{path}: its 'made_by' is not JSON ({error}): make the file again with `dit reference`"
        ) from error
    if not isinstance(protocol, dict) or not protocol.keys() >= _MADE_BY:
        raise UserError(
            f"{path}: its 'made_by' lacks some of {', '.join(sorted(_MADE_BY))}: make the file again with `dit reference`"
        )
    return protocol


def _from_adm(arrays: Any, path: Path, extractor: Extractor, batch_size: int, report: Report | None) -> Reference:
    """ADM's batch: statistics as included, features of its images."""
    protocol = {
        "extractor": inception.NAME,
        "extractor_sha256": ANY_WEIGHTS,
        "resize": inception.RESIZE,
        "num_images": None,
        "source": path.name,
        "source_sha256": _file_hash(path),
    }
    reference = _from_arrays(arrays, path, protocol)
    _refuse_other(reference, extractor, path)
    if "arr_0" not in arrays.files:
        return reference
    kept = _features(extractor, open_images(str(path), extractor.channels), batch_size, report)
    return Reference(reference.pooled, reference.spatial, kept, protocol)


def _features(extractor: Extractor, images: ImageSet, batch_size: int, report: Report | None) -> np.ndarray:
    count = min(REFERENCES, len(images))
    return gather(extractor, images, batch_size, count, keep=count, report=report).features


def _from_arrays(arrays: Any, path: Path, protocol: dict[str, Any]) -> Reference:
    missing = [name for name in ("mu", "sigma") if name not in arrays.files]
    if missing:
        raise UserError(
            f"{path} lacks '{missing[0]}': expected statistics mu and sigma, make the file again with `dit reference`"
        )
    for name in ("mu", "sigma", "mu_s", "sigma_s"):
        if name in arrays.files and arrays[name].dtype.kind not in "fiu":
            raise UserError(f"{path}: '{name}' holds {arrays[name].dtype}, expected numbers: make the file again")
    count = protocol["num_images"]
    pooled = Gaussian(arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64), count)
    spatial = None
    if "mu_s" in arrays.files:
        spatial = Gaussian(arrays["mu_s"].astype(np.float64), arrays["sigma_s"].astype(np.float64), count)
    features = arrays["features"] if "features" in arrays.files else np.empty((0, len(pooled.mean)), np.float32)
    return Reference(pooled, spatial, features, protocol)


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


@contextmanager
def _arrays(path: Path) -> Iterator[Any]:
    with reading(path), path.open("rb") as file:
        try:
            arrays = np.load(file, allow_pickle=False)
        except ValueError as error:
            raise UserError(f"{path} is not an .npz file ({error}): expected statistics or images") from error
        yield arrays


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
