"""One pass over images, streamed: features of each batch, and the sums that every metric is taken of.

Images come from a file or are drawn from a model while they are scored. Features are taken on this process's devices. The state of a pass
can be kept between batches (`dit.score.kept_samples`), so that one which was killed goes on where it was and ends with the same bits.
Pooled features are kept only for metrics that compare single images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dit.data.image_sets import ImageSet
from dit.errors import UserError
from dit.score.features import Extractor, Features
from dit.score.kept_samples import KeptSamples
from dit.score.metrics.inception_score import InceptionScore
from dit.score.metrics.moments import Moments

Report = Callable[[int, int], None]
"""Told how many images of how many are done."""

ALL = ("spatial", "logits")
"""What a pass may take besides pooled features."""


class Statistics:
    """What one pass leaves, of images `first` and after of a whole set.

    Args:
        keep: how many pooled features to keep, from this part's first image on.
        take: which of `ALL` to take; what the extractor does not give stays None.
    """

    def __init__(self, first: int = 0, keep: int = 0, take: Iterable[str] = ALL):
        self.first, self.keep, self.take = first, keep, tuple(take)
        self.moments: dict[str, Moments] = {}
        self.inception: InceptionScore | None = None
        self._kept: list[np.ndarray] = []

    @property
    def count(self) -> int:
        """Images seen."""
        return self.moments["pooled"].count if self.moments else 0

    @property
    def pooled(self) -> Moments:
        """Moments of pooled features."""
        return self.moments["pooled"]

    @property
    def spatial(self) -> Moments | None:
        """Moments of spatial features."""
        return self.moments.get("spatial")

    @property
    def features(self) -> np.ndarray:
        """The first pooled features, as many as were to be kept."""
        if len(self._kept) != 1:
            self._kept = [np.concatenate([np.zeros((0, self.pooled.dimensions), np.float32), *self._kept])]
        return self._kept[0]

    def add(self, found: Features) -> None:
        """Take in the features of the next images.

        Raises:
            UserError: if a value is not finite.
        """
        left = self.keep - self.count
        if left > 0:
            self._kept.append(found.pooled[:left])
        if "logits" in self.take and found.logits is not None:
            self.inception = self.inception or InceptionScore(found.logits.shape[1])
            self.inception.update(found.logits, self.first + self.count)
        for name in ("spatial", "pooled"):
            rows = getattr(found, name)
            if name in (*self.take, "pooled") and rows is not None:
                moments = self.moments.setdefault(name, Moments(rows.shape[1], f"{name} features"))
                moments.update(rows)

    def merge(self, other: Statistics) -> None:
        """Add the images that `other` has seen, which come after these."""
        for name, moments in other.moments.items():
            self.moments[name] = self.moments[name].merge(moments) if name in self.moments else moments
        if other.inception is not None:
            self.inception = other.inception if self.inception is None else self.inception.merge(other.inception)
        self._kept += other._kept

    def state(self) -> dict[str, Any]:
        """Arrays that restore all of it: what follows is the same bit for bit."""
        arrays = {"features": self.features} if self.moments else {}
        for name, moments in self.moments.items():
            arrays |= moments.state(f"{name}_")
        return arrays | (self.inception.state("inception_") if self.inception else {})

    def restore(self, arrays: Any) -> None:
        """Take up what `state` returned."""
        names = [name for name in ("pooled", "spatial") if f"{name}_count" in arrays]
        self.moments = {name: Moments.from_state(arrays, f"{name}_", f"{name} features") for name in names}
        self.inception = InceptionScore.from_state(arrays, "inception_") if "inception_count" in arrays else None
        self._kept = [arrays["features"]] if self.moments else []


def take_in(
    statistics: Statistics, extractor: Extractor, batches: Iterable[np.ndarray], after: Callable[[], None]
) -> None:
    """The pass itself: features of each batch of images, from the first that is missing on. `after` is called after each.

    Raises:
        UserError: for images that the extractor does not take, or features that are not finite.
    """
    for images in batches:
        statistics.add(extractor.extract(images))
        after()


def gather(
    extractor: Extractor,
    images: ImageSet,
    batch_size: int,
    count: int | None = None,
    keep: int = 0,
    partial: Path | None = None,
    report: Report | None = None,
) -> Statistics:
    """Statistics of images on disk, over all processes: each takes a consecutive part and the statistics are added up.

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
    statistics = Statistics(first, max(0, min(keep, stop) - first))
    made = [extractor.name, extractor.weights_sha256, extractor.resize]
    made_of = [*made, images.sha256, count, batch_size, keep, hosts]
    kept = KeptSamples(partial / f"{host}.part", made_of) if partial else None
    if kept and (arrays := kept.load()) is not None:
        statistics.restore(arrays)

    def after() -> None:
        if report:
            report(first + statistics.count, count)
        if kept and kept.is_due():
            kept.save(statistics.state())

    take_in(statistics, extractor, images.batches(batch_size, first + statistics.count, stop), after)
    if not statistics.count:
        raise UserError(f"{images.source} holds no images: expected at least 2")
    return _over_hosts(statistics) if hosts > 1 else statistics


def _over_hosts(statistics: Statistics) -> Statistics:
    """The sum over processes, the same in each. Sent as bytes: an array of float64 would be rounded to float32 on the way."""
    from jax.experimental.multihost_utils import process_allgather

    buffer = io.BytesIO()
    np.savez(buffer, **statistics.state())
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    sizes = np.asarray(process_allgather(np.array([len(data)], np.int32))).reshape(-1)
    everyone = np.asarray(process_allgather(np.pad(data, (0, int(sizes.max()) - len(data)))))
    total = Statistics()
    for row, size in zip(everyone.reshape(len(sizes), -1), sizes):
        with np.load(io.BytesIO(row[:size].tobytes()), allow_pickle=False) as arrays:
            part = Statistics()
            part.restore(arrays)
            total.merge(part)
    return total
