"""Scores of a set of images: features in one pass, streaming statistics, then every metric asked for.

The pass goes over batches in order, sharded over this process's devices; with several processes each takes a consecutive part and the
statistics are added up. Its state is written beside the result every half minute, so an evaluation that was killed goes on where it
was and ends with the same bits. Pooled features are kept only for metrics that compare single images.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dit.data.image_sets import ImageSet
from dit.design.config import digest
from dit.errors import UserError
from dit.score.features import Extractor
from dit.score.metrics.inception_score import InceptionScore
from dit.score.metrics.moments import Moments
from dit.store.files import whole

Report = Callable[[int, int], None]
"""Told how many images of how many are done."""

SAVE_EVERY_S = 30.0


@dataclass(eq=False)
class Statistics:
    """What one pass leaves. `features` are the first pooled features, as many as were to be kept."""

    pooled: Moments
    spatial: Moments
    inception: InceptionScore
    features: np.ndarray

    @property
    def count(self) -> int:
        """Images seen."""
        return self.pooled.count

    def state(self) -> dict[str, Any]:
        """Arrays that restore everything but the features."""
        return {**self.pooled.state("pooled_"), **self.spatial.state("spatial_"), **self.inception.state("inception_")}

    @classmethod
    def from_state(cls, arrays: Any, features: np.ndarray) -> Statistics:
        """Statistics from what `state` returned."""
        pooled, spatial = (Moments.from_state(arrays, f"{name}_", f"{name} features") for name in ("pooled", "spatial"))
        return cls(pooled, spatial, InceptionScore.from_state(arrays, "inception_"), features)


def gather(
    extractor: Extractor,
    images: ImageSet,
    batch_size: int,
    count: int | None = None,
    keep: int = 0,
    partial: Path | None = None,
    report: Report | None = None,
) -> Statistics:
    """Statistics of the images, over all processes.

    Args:
        count: how many to take, from the first on; None for all.
        keep: how many pooled features to keep, from the first image on.
        partial: folder for the state of an unfinished pass; one that was made of the same images in the same way is taken up.

    Raises:
        UserError: for images that the extractor does not take, or features that are not finite.
    """
    host, hosts = jax.process_index(), jax.process_count()
    count = len(images) if count is None else count
    first, stop = host * count // hosts, (host + 1) * count // hosts
    made_of = [
        extractor.name,
        extractor.weights_sha256,
        extractor.resize,
        images.sha256,
        count,
        batch_size,
        keep,
        hosts,
    ]
    checkpoint = _Checkpoint(partial / str(host), digest(made_of, 64)) if partial else None
    statistics = checkpoint.load() if checkpoint else None
    start = first + statistics.count if statistics else first
    saved = time.monotonic()
    for batch in images.batches(batch_size, start, stop):
        features = extractor.extract(batch)
        if statistics is None:
            statistics = _empty(features, max(0, min(keep, stop) - first), checkpoint)
        place = slice(statistics.count, statistics.count + len(batch))
        kept = statistics.features[place]
        kept[:] = features.pooled[: len(kept)]
        statistics.inception.update(features.logits, first + statistics.count)
        statistics.spatial.update(features.spatial)
        statistics.pooled.update(features.pooled)
        if report:
            report(first + statistics.count, count)
        if checkpoint and time.monotonic() - saved > SAVE_EVERY_S:
            checkpoint.save(statistics)
            saved = time.monotonic()
    if statistics is None:
        raise UserError(f"{images.source} holds no images: expected at least 2")
    return _over_hosts(statistics) if hosts > 1 else statistics


def _empty(features: Any, keep: int, checkpoint: _Checkpoint | None) -> Statistics:
    shape = (keep, features.pooled.shape[1])
    return Statistics(
        Moments(shape[1], "pooled features"),
        Moments(features.spatial.shape[1], "spatial features"),
        InceptionScore(features.logits.shape[1]),
        checkpoint.features(shape) if checkpoint and keep else np.empty(shape, np.float32),
    )


class _Checkpoint:
    """The state of a pass in a folder: `state.npz`, replaced whole, and kept features in a mapped file that is only added to."""

    def __init__(self, folder: Path, identity: str):
        self._folder, self._identity = folder, identity

    def load(self) -> Statistics | None:
        """The saved state, or None where there is none of just this pass."""
        path = self._folder / "state.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["identity"]) != self._identity:
                return None
            return Statistics.from_state(arrays, self.features(tuple(arrays["kept"].tolist())))

    def save(self, statistics: Statistics) -> None:
        """Features first, then the state that counts them."""
        if isinstance(statistics.features, np.memmap):
            statistics.features.flush()
        with whole(self._folder / "state.npz") as beside, beside.open("wb") as file:
            np.savez(file, identity=self._identity, kept=np.array(statistics.features.shape), **statistics.state())

    def features(self, shape: tuple[int, ...]) -> np.ndarray:
        """The mapped file of kept features."""
        if not shape[0]:
            return np.empty(shape, np.float32)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "features.f32"
        fits = path.is_file() and path.stat().st_size == 4 * shape[0] * shape[1]
        return np.memmap(path, np.float32, "r+" if fits else "w+", shape=shape)


def _over_hosts(statistics: Statistics) -> Statistics:
    """The sum over processes, the same in each. Sent as bytes: an array of float64 would be rounded to float32 on the way."""
    from jax.experimental.multihost_utils import process_allgather

    buffer = io.BytesIO()
    np.savez(buffer, features=statistics.features, **statistics.state())
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    sizes = np.asarray(process_allgather(np.array([len(data)], np.int32))).reshape(-1)
    everyone = np.asarray(process_allgather(np.pad(data, (0, int(sizes.max()) - len(data)))))
    parts = []
    for row, size in zip(everyone.reshape(len(sizes), -1), sizes):
        with np.load(io.BytesIO(row[:size].tobytes()), allow_pickle=False) as arrays:
            parts.append(Statistics.from_state(arrays, arrays["features"]))
    total = parts[0]
    for part in parts[1:]:
        total.pooled.merge(part.pooled)
        total.spatial.merge(part.spatial)
        total.inception.merge(part.inception)
    total.features = np.concatenate([part.features for part in parts])
    return total
