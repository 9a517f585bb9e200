"""How often 95 % intervals hold the truth: a table over simulated studies, for what is read from one and for several kinds of noise.

    python tests/benchmarks/coverage.py [--studies 200] [--replicates 300] [--what exponent ...] [--noise normal ...] [--sd 0.02]

A study has nine cells (S, B, L at patch 8, 4, 2) with three seeds. `exponent`: a of L = A C^-a; width is over that of Student's interval of
ordinary least squares on cell means. `XL`: the law at XL/2, not measured. `new run`: the prediction interval of a fresh run there.
`optimum`: the exponent of N* ~ C^a of a table of (N, D). `block factor`: a second block as a factor of training steps. Noise: normal, t of
three degrees, unequal (five times as much at patch 2), one bad run (off by 20 sd), a missing cell, and a wrong form (scores of another
law than the fitted one), for which no interval can be right. Deterministic.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student
from tabulate import tabulate

from analysis.fits.fit import fit_law
from analysis.fits.observations import VARIABLES, Observations
from analysis.fits.optimum import optimum
from analysis.fits.steps import step_factors
from analysis.fits.table import observe_table

sys.path.insert(0, str(Path(__file__).parents[1]))  # the simulator that the tests share
from simulated_scores import COMMON_STEP, TRUTHS, cell, scores

NOISE = ("normal", "t3", "unequal", "one bad run", "missing cell", "wrong form")
WHAT = ("exponent", "XL", "new run", "optimum", "block factor")
FACTOR = 1.5
Result = list[tuple[str, bool, float]]


def errors(kind: str, sd: float, patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Errors (n,) of log scores."""
    found = sd * rng.standard_normal(len(patch))
    if kind == "t3":
        found = sd * rng.standard_t(3, len(patch)) / np.sqrt(3)
    elif kind == "unequal":
        found *= np.where(patch == 2, 5.0, 1.0)
    elif kind == "one bad run":
        found[rng.integers(len(patch))] += 20 * sd
    return found


def with_noise(data: Observations, kind: str, sd: float, rng: np.random.Generator) -> Observations:
    """The same scores with errors; without one cell where it is missing."""
    patch = data.column("patch_size")
    data.rows[data.metric] = data.score * np.exp(errors(kind, sd, patch, rng))
    return data.at(data.cells != rng.integers(data.cells.max() + 1)) if kind == "missing cell" else data


def of_law(kind: str, args: argparse.Namespace, rng: np.random.Generator) -> Result:
    """Exponent, XL and new run."""
    form = "power+E" if kind == "wrong form" else "power"
    data = with_noise(scores(TRUTHS[form], seeds=3, sizes=("S", "B", "L")), kind, args.sd, rng)
    law = fit_law(data, "power", replicates=args.replicates)
    between = law.parameters[1].interval
    row = cell("XL", 2, COMMON_STEP)
    [one] = law.predict({name: np.array([float(row[name])]) for name in VARIABLES})
    truth = TRUTHS[form](row)
    means = data.rows.assign(y=np.log(data.score)).groupby(["size", "patch_size"])[["y", "train_gflops"]].mean()
    x = np.log(means["train_gflops"]) - np.log(means["train_gflops"]).mean()
    slope, level = np.polyfit(x, means["y"], 1)
    freedom = len(x) - 2
    error = np.sqrt(np.sum((means["y"] - level - slope * x) ** 2) / freedom / np.sum(x**2))
    width = (between.high - between.low) / (2 * student.ppf(0.975, freedom) * error)
    fresh = truth * np.exp(errors(kind, args.sd, np.array([2]), rng)[0]) if kind != "one bad run" else truth
    return [
        ("exponent", 0.35 in between, width),
        ("XL", truth in one.confidence, one.confidence.high / one.confidence.low),
        ("new run", fresh in one.prediction, one.prediction.high / one.prediction.low),
    ]


def of_optimum(kind: str, args: argparse.Namespace, rng: np.random.Generator) -> Result:
    """Exponent of the best N, of L = E + A N^-.35 + B D^-.37."""
    n, d = (one.ravel() for one in np.meshgrid(np.geomspace(7e7, 1e10, 6), np.geomspace(1e9, 5e11, 5), indexing="ij"))
    loss = 1.8 + 480 * n**-0.35 + 2100 * d**-0.37
    if kind == "wrong form":
        loss = 1.8 + 480 * n**-0.35 + 2100 * d**-0.37 * (n / 1e9) ** 0.05
    kept = np.ones(len(n), dtype=bool)
    kept[rng.integers(len(n))] = kind != "missing cell"
    loss = loss * np.exp(errors(kind, args.sd / 4, np.where(n > 5e9, 2, 8), rng))
    frame = pd.DataFrame({"params": n, "images_seen": d, "score": loss})[kept]
    law = fit_law(observe_table(frame, {}), "params+images", replicates=args.replicates)
    between = optimum(law).params_exponent.interval
    return [("optimum", 0.37 / 0.72 in between, between.high - between.low)]


def of_blocks(kind: str, args: argparse.Namespace, rng: np.random.Generator) -> Result:
    """A block that needs `FACTOR` times the training steps."""

    def truth(row: dict) -> float:
        exponent = 0.3 if kind != "wrong form" or row["size"] != "S" else 0.15
        return 1e4 * (row["images_seen"] / (FACTOR if row["block"] == "adaln" else 1.0)) ** -exponent

    blocks, steps = ("adaln_zero", "adaln"), (COMMON_STEP // 2, COMMON_STEP)
    data = scores(truth, seeds=3, steps=steps, sizes=("S", "B", "L"), blocks=blocks)
    [one] = step_factors(with_noise(data, kind, args.sd, rng), "adaln_zero")
    if one.interval is None:
        return []
    return [("block factor", FACTOR in one.interval, one.interval.high / one.interval.low)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--what", nargs="*", default=list(WHAT), choices=WHAT)
    parser.add_argument("--noise", nargs="*", default=list(NOISE), choices=NOISE)
    parser.add_argument("--sd", type=float, default=0.02, help="relative, between two runs of one cell")
    args = parser.parse_args()
    rows = []
    for kind in args.noise:
        found: dict[str, list[tuple[bool, float]]] = {name: [] for name in args.what}
        for study in range(args.studies):
            for make, of in ((of_law, WHAT[:3]), (of_optimum, WHAT[3:4]), (of_blocks, WHAT[4:])):
                if set(of) & set(args.what):
                    for name, hit, width in make(kind, args, np.random.default_rng(study)):
                        found.setdefault(name, []).append((hit, width))
        for name in args.what:
            hits = found[name]
            share = f"{np.mean([hit for hit, _ in hits]):.1%}" if hits else "refused"
            width = f"{np.median([width for _, width in hits]):.3g}" if hits else "-"
            rows.append([name, kind, str(len(hits)), share, width])
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print(tabulate(rows, ["of", "noise", "studies", "hold the truth", "width"], "github", disable_numparse=True))


if __name__ == "__main__":
    main()
