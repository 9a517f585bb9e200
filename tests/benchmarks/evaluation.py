"""What evaluating costs here, beside the usual ways, as ratios of interleaved rounds in one run on one machine.

    python tests/benchmarks/evaluation.py [frechet] [neighbours] [inception] [moments] [--rounds 3] [--dimensions 2048] [--points 10000]

`inception` needs PyTorch and torch-fidelity, with as many threads as there are cores for each side. Seconds move with the machine and
its load; ratios less. Peak memory is NumPy's, of one pass.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
from tabulate import tabulate

from dit.score.metrics.frechet import Gaussian, frechet_distance
from dit.score.metrics.moments import Moments
from dit.score.metrics.precision_recall import precision_recall

sys.path.insert(0, str(Path(__file__).parents[1]))  # the oracle that the tests share

Row = tuple[str, str, str, str]
HEADS = ("what", "median s (min to max)", "times ours, median (min to max)", "agrees with ours")


def interleaved(
    ways: dict[str, Callable[[], object]], rounds: int, agree: Callable[[object, object], str]
) -> list[Row]:
    """One call of each way per round, after one that nobody counts; the first way is ours."""
    results = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    ours = next(iter(ways))
    rows = []
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds[ours])]
        same = "" if name == ours else agree(results[name], results[ours])
        rows.append((name, _spread(taken), "" if name == ours else _spread(ratios), same))
    return rows


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _gaussian(dimensions: int, seed: int) -> Gaussian:
    """Of 10,000 features such as Inception's: not negative, correlated, of very different spread."""
    generator = np.random.default_rng(seed)
    shared = np.random.default_rng(0).standard_normal((dimensions // 8, dimensions)) * 0.05
    scale = np.exp(np.random.default_rng(1).standard_normal(dimensions) - 1)
    rows = (
        generator.standard_normal((10_000, dimensions // 8)) @ shared
        + generator.standard_normal((10_000, dimensions)) * scale
    )
    return Moments(dimensions).update(np.maximum(rows + 0.1, 0).astype(np.float32)).gaussian()


def frechet(args: argparse.Namespace) -> list[Row]:
    """Distance between two Gaussians; the root of the plain product is what ADM, pytorch-fid and clean-fid take."""
    a, b = (_gaussian(args.dimensions, seed) for seed in (2, 3))

    def ours() -> float:
        return frechet_distance(Gaussian(a.mean, a.covariance), Gaussian(b.mean, b.covariance))  # nothing cached

    def rest() -> float:
        shift = a.mean - b.mean
        return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance))

    ways: dict[str, Callable[[], object]] = {
        f"frechet {args.dimensions}: ours": ours,
        "  reference's factor cached": lambda: frechet_distance(Gaussian(a.mean, a.covariance), b),
        "  scipy.linalg.sqrtm(S1 S2)": lambda: (
            rest() - 2 * np.trace(np.real(scipy.linalg.sqrtm(a.covariance @ b.covariance)))
        ),
        "  numpy eigvals(S1 S2), torch-fidelity": lambda: (
            rest() - 2 * np.sqrt(np.linalg.eigvals(a.covariance @ b.covariance).astype(complex)).real.sum()
        ),
    }
    return interleaved(ways, args.rounds, lambda x, y: f"{abs(x - y):.1e} of {y:.2f}")  # type: ignore[operator]


def neighbours(args: argparse.Namespace) -> list[Row]:
    """Precision and recall of as many samples as references, in float32 throughout."""
    from sklearn.neighbors import NearestNeighbors

    generator = np.random.default_rng(0)
    # features lie near a sheet of few dimensions, or nothing would be near anything
    sheet = generator.standard_normal((24, args.dimensions)).astype(np.float32)
    sets = [generator.standard_normal((args.points, 24), np.float32) * scale @ sheet for scale in (1.0, 0.9)]
    references, samples = [x + generator.standard_normal(x.shape, np.float32) * 0.1 for x in sets]

    def ours() -> tuple[float, float]:
        found = precision_recall(references, samples)
        return found.precision, found.recall

    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.maximum((x * x).sum(axis=1)[:, None] - 2 * (x @ y.T) + (y * y).sum(axis=1)[None], 0)

    def numpy_way() -> tuple[float, float]:
        reach = [np.partition(distances(x, x), 3, axis=1)[:, 3] for x in (references, samples)]
        across = distances(samples, references)
        return float((across <= reach[0][None]).any(axis=1).mean()), float(
            (across <= reach[1][:, None]).any(axis=0).mean()
        )

    def sklearn_way() -> tuple[float, float]:
        reach = []
        for x in (references, samples):
            found = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(x).kneighbors(x, return_distance=True)
            reach.append(np.asarray(found[0])[:, 3] ** 2)
        across = distances(samples, references)
        return float((across <= reach[0][None]).any(axis=1).mean()), float(
            (across <= reach[1][:, None]).any(axis=0).mean()
        )

    ways: dict[str, Callable[[], object]] = {
        f"precision, recall {args.points} x {args.points} x {args.dimensions}: ours": ours,
        "  numpy brute force": numpy_way,
        "  scikit-learn": sklearn_way,
    }
    return interleaved(ways, args.rounds, lambda x, y: f"{x[0]:.4f}, {x[1]:.4f} / {y[0]:.4f}, {y[1]:.4f}")  # type: ignore[index]


def network(args: argparse.Namespace) -> list[Row]:
    """The FID Inception on random weights: 16 images of 64 px, resized inside."""
    import torch
    from fidelity_oracle import load

    from dit.score import inception, inception_weights

    torch.set_num_threads(os.cpu_count() or 1)
    state = inception_weights.random(0)
    ours = inception.extractor(inception_weights.fold(state), "random", batch_size=args.images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save({name: torch.tensor(value) for name, value in state.items()}, path)
        made = load("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        theirs = made("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
    images = np.random.default_rng(0).integers(0, 256, (args.images, 64, 64, 3), dtype=np.uint8)
    tensor = torch.tensor(images.transpose(0, 3, 1, 2).copy())

    def torch_way() -> np.ndarray:
        with torch.no_grad():
            return theirs(tensor)[0].numpy()

    ways: dict[str, Callable[[], object]] = {
        f"inception, {args.images} images: ours": lambda: ours.extract(images).pooled,
        "  torch-fidelity": torch_way,
    }
    return interleaved(ways, args.rounds, lambda x, y: f"{np.abs(x - y).max() / np.abs(x).max():.1e} of the largest")  # type: ignore[operator]


def moments(args: argparse.Namespace) -> list[Row]:
    """Streaming moments of up to 50,000 features, batches of 64."""
    batch = np.random.default_rng(0).standard_normal((64, args.dimensions)).astype(np.float32)
    rows = []
    for count in (10_000, 50_000):
        seconds = []
        for _ in range(args.rounds):
            start = time.perf_counter()
            streamed = Moments(args.dimensions)
            for _ in range(count // 64):
                streamed.update(batch)
            streamed.gaussian()
            seconds.append(time.perf_counter() - start)
        tracemalloc.start()
        streamed = Moments(args.dimensions)
        for _ in range(count // 64):
            streamed.update(batch)
        streamed.gaussian()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows.append((f"moments of {count} x {args.dimensions}", _spread(seconds), "", f"peak {peak / 2**20:.0f} MiB"))
    return rows


def main() -> None:
    """Print the table."""
    parts = {"frechet": frechet, "neighbours": neighbours, "inception": network, "moments": moments}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="which (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=16)
    args = parser.parse_args()
    rows = [row for name in args.parts or parts for row in parts[name](args)]
    print(tabulate(rows, HEADS, disable_numparse=True))


if __name__ == "__main__":
    main()
