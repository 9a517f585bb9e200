"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), by the protocol of the ADM suite.

A set's manifold is the union of balls around its features, each reaching to the k-th nearest other one, k = 3. Precision is the share
of samples inside the reference manifold, recall the share of references inside the samples' manifold; a point on the border is inside.
ADM takes the 10,000 images of the reference batch (not its whole data set) against 50,000 samples; at 512 px the DiT paper took 1,000.
Both depend on both numbers, so only equal ones compare.

Distances are blocks of a matrix product in float32, never the whole matrix, and each block serves its rows and its columns. The nearest
few come from folding halves, several times faster on a CPU than repeated minima and far faster than a sort or `top_k`. `half` rounds
as the original does: float16, float32 where that overflows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from dit.errors import UserError

NEAREST = 3
REFERENCES = 10_000
"""Reference images that ADM's protocol takes."""
BLOCK = 2048
"""Rows and columns of a block of distances: 16 MiB of float32 each."""


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """Both shares, and which points are inside: samples in the reference manifold, references in the samples'."""

    samples_inside: Bool[np.ndarray, "N"]
    references_inside: Bool[np.ndarray, "R"]

    @property
    def precision(self) -> float:
        """Share of samples inside the reference manifold."""
        return float(self.samples_inside.mean())

    @property
    def recall(self) -> float:
        """Share of references inside the samples' manifold."""
        return float(self.references_inside.mean())


def precision_recall(
    references: Float32[np.ndarray, "R F"],
    samples: Float32[np.ndarray, "N F"],
    nearest: int = NEAREST,
    half: bool = False,
) -> PrecisionRecall:
    """Improved precision and recall of samples.

    Raises:
        UserError: for too few points to have `nearest` others, or features that are not finite.
    """
    for name, points in (("references", references), ("samples", samples)):
        if len(points) <= nearest:
            raise UserError(
                f"{len(points)} {name} for precision and recall: expected more than k = {nearest}, give more images"
            )
        if not np.isfinite(points).all():
            raise UserError(
                f"features of {name} are not finite: expected finite values, check the images and the weights"
            )
    if not half:
        # Distances do not change with the origin, their rounding does: it is smallest about the middle.
        middle = references.mean(axis=0, dtype=np.float64).astype(np.float32)
        references, samples = references - middle, samples - middle
    reach = radii(references, nearest, half), radii(samples, nearest, half)
    rows, columns = list(_blocks(references, reach[0])), list(_blocks(samples, reach[1]))
    references_inside = [np.zeros(len(block.points), bool) for block in rows]
    samples_inside = [np.zeros(len(block.points), bool) for block in columns]
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            of_rows, of_columns = _covered(row, column, half=half)
            references_inside[i] |= np.asarray(of_rows)
            samples_inside[j] |= np.asarray(of_columns)
    return PrecisionRecall(
        np.concatenate(samples_inside)[: len(samples)], np.concatenate(references_inside)[: len(references)]
    )


def radii(points: Float32[np.ndarray, "N F"], nearest: int = NEAREST, half: bool = False) -> Float32[np.ndarray, "N"]:
    """Squared distance of each point to its k-th nearest other."""
    blocks = list(_blocks(points, np.zeros(len(points), np.float32)))
    # one more than asked: each point is its own nearest
    least = [jnp.full((nearest + 1, len(block.points)), jnp.inf, jnp.float32) for block in blocks]
    for i, row in enumerate(blocks):
        for j, column in enumerate(blocks[: i + 1]):  # the rest is the same by symmetry
            of_rows, of_columns = _nearer(row, column, least[i], least[j], half=half)
            least[i] = of_rows
            if i != j:
                least[j] = of_columns
    return np.concatenate([np.asarray(block[-1]) for block in least])[: len(points)]


class _Block(NamedTuple):
    """Points, their squared norms, how far each reaches (squared), and 0 for each point or infinity for each row of filling.

    Norms come from outside: taken in the same program as the product they make XLA on a CPU run it at half the speed.
    """

    points: np.ndarray
    norms: np.ndarray
    reach: np.ndarray
    filling: np.ndarray


def _blocks(points: np.ndarray, reach: np.ndarray) -> Iterator[_Block]:
    """Blocks of one size, a power of two, so that everything compiles once and halves evenly; the last is filled up."""
    size = min(BLOCK, 1 << (len(points) - 1).bit_length())
    for start in range(0, len(points), size):
        block = points[start : start + size]
        missing = size - len(block)
        yield _Block(
            np.pad(block, ((0, missing), (0, 0))),
            np.pad(np.square(block, dtype=np.float64).sum(axis=1).astype(np.float32), (0, missing)),
            np.pad(reach[start : start + size], (0, missing)),
            np.pad(np.zeros(len(block), np.float32), (0, missing), constant_values=np.inf),
        )


def _distances(rows: _Block, columns: _Block, half: bool) -> Array:
    """Squared Euclidean in float32, from norms and one product; infinite where a row or column is only filling."""
    x, y = jnp.asarray(rows.points), jnp.asarray(columns.points)

    def exact() -> Array:
        norms = jnp.asarray(rows.norms)[:, None] + jnp.asarray(columns.norms)[None, :]
        return jnp.maximum(norms - 2 * jnp.matmul(x, y.T, precision="highest"), 0)

    def rounded() -> Array:
        a, b = x.astype(jnp.float16), y.astype(jnp.float16)
        norms = jnp.square(a).sum(axis=1)[:, None] + jnp.square(b).sum(axis=1)[None, :]
        return jnp.maximum(norms - 2 * jnp.matmul(a, b.T), 0)

    if half:
        low = rounded()
        distances = jax.lax.cond(jnp.isfinite(low).all(), lambda: low.astype(jnp.float32), exact)
    else:
        distances = exact()
    return distances + rows.filling[:, None] + columns.filling[None, :]


@functools.partial(jax.jit, static_argnames="half")
def _nearer(rows: _Block, columns: _Block, of_rows: Array, of_columns: Array, half: bool) -> tuple[Array, Array]:
    """The smallest distances so far, in order, of each row and of each column, as arrays (how many, points)."""
    distances = _distances(rows, columns, half)
    keep = len(of_rows)
    return (
        _lowest(of_rows, _smallest_along(distances, 1, keep)),
        _lowest(of_columns, _smallest_along(distances, 0, keep)),
    )


@functools.partial(jax.jit, static_argnames="half")
def _covered(rows: _Block, columns: _Block, half: bool) -> tuple[Array, Array]:
    """Which rows lie within reach of a column, and which columns within reach of a row."""
    distances = _distances(rows, columns, half)
    return (distances <= columns.reach[None, :]).any(axis=1), (distances <= rows.reach[:, None]).any(axis=0)


def _lowest(a: Array, b: Array) -> Array:
    return jnp.sort(jnp.concatenate([a, b]), axis=0)[: len(a)]


def _smallest_along(values: Array, axis: int, keep: int) -> Array:
    """The `keep` smallest along an axis whose length is a power of two, in order, as an array (keep, others).

    Halves are folded onto each other until one element is left: sorted runs grow to `keep` (rounded up to a power of two), then each
    fold keeps the lower half of two of them (Batcher's bitonic merge). Elementwise throughout, and exact where values are equal.
    """
    width = 1 << (keep - 1).bit_length()
    run = [values]
    while run[0].shape[axis] > 1:
        low, high = zip(*(jnp.split(part, 2, axis=axis) for part in run))
        high = high[::-1]
        run = _merge([*low, *high] if len(run) < width else [jnp.minimum(a, b) for a, b in zip(low, high)])
    found = jnp.stack([part.squeeze(axis) for part in run])
    return jnp.pad(found, ((0, max(0, keep - len(found))), (0, 0)), constant_values=jnp.inf)[:keep]


def _merge(bitonic: list[Array]) -> list[Array]:
    """A bitonic sequence of arrays, sorted elementwise."""
    if len(bitonic) == 1:
        return bitonic
    half = len(bitonic) // 2
    pairs = list(zip(bitonic[:half], bitonic[half:]))
    return _merge([jnp.minimum(a, b) for a, b in pairs]) + _merge([jnp.maximum(a, b) for a, b in pairs])
