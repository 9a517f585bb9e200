"""How often 95 % intervals hold the truth: a table over simulated studies, for every form, few and many seeds, with and without misfit.

    python tests/benchmarks/coverage.py [--studies 200] [--replicates 300] [--forms power surface ...] [--loss huber] [--sd 0.02]

Each study has nine cells (S, B, L at patch 8, 4, 2) whose scores follow the form exactly, with noise between runs; `misfit` adds a
deviation of three per cent to each cell, which its seeds and steps share. `law` is the confidence interval of the law at nine cells,
`XL` at the three of a size that was not measured, `new run` the prediction interval of a fresh run's score (misfit of its cell
included), `parameters` those intervals that are reported. `blocks` is the multiplier of a second block, over all twelve cells. Width:
median ratio of the ends of the law's interval at XL. Deterministic.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from tabulate import tabulate

from analysis.fits.blocks import compare_blocks
from analysis.fits.fit import LOSSES, fit_law
from analysis.fits.laws import FORMS
from analysis.fits.observations import VARIABLES

sys.path.insert(0, str(Path(__file__).parents[1]))  # the simulator that the tests share
from simulated_scores import COMMON_STEP, STEPS, TRUTHS, cell, scores

MISFIT = 0.03
MULTIPLIER = 2.0
SIZES = ("S", "B", "L")


def row_of(form: str, seeds: int, misfit: float, args: argparse.Namespace) -> list[str]:
    """One line of the table: coverage of every kind of interval for one form."""
    steps = STEPS if FORMS[form].steps == "all" else (COMMON_STEP,)
    exact = fit_law(scores(TRUTHS[form], steps=steps, sizes=SIZES), form, replicates=0)
    new = [cell(size, patch, COMMON_STEP) for size in (*SIZES, "XL") for patch in (8, 4, 2)]
    columns = {name: np.array([float(row[name]) for row in new]) for name in VARIABLES}
    truth = [TRUTHS[form](row) for row in new]
    hits: dict[str, list[bool]] = {"law": [], "XL": [], "new run": [], "parameters": []}
    widths = []
    for study in range(args.studies):
        rng = np.random.default_rng(study)
        data = scores(TRUTHS[form], args.sd, seeds, steps, SIZES, rng, cell_sd=misfit)
        law = fit_law(data, form, replicates=args.replicates, loss=args.loss, seed=study)
        for place, (one, score) in enumerate(zip(law.predict(columns), truth)):
            beyond = place >= 9
            hits["XL" if beyond else "law"].append(score in one.confidence)
            drawn = score * np.exp(np.hypot(args.sd, misfit) * rng.standard_normal())
            hits["new run"].append(drawn in one.prediction)
            if beyond:
                widths.append(one.confidence.high / one.confidence.low)
        for found, true in zip(law.parameters, exact.parameters):
            if found.interval and true.value is not None:
                hits["parameters"].append(true.value in found.interval)
    cover = [f"{np.mean(one):.1%}" for one in hits.values()]
    return [form, str(seeds), f"{misfit:.0%}", *cover, f"{np.median(widths):.2f}"]


def blocks_row(seeds: int, misfit: float, args: argparse.Namespace) -> list[str]:
    """One line: coverage of a second block's multiplier of compute."""

    def truth(row: dict) -> float:
        shift = MULTIPLIER if row["block"] == "adaln" else 1.0
        return TRUTHS["power+E"]({**row, "train_gflops": row["train_gflops"] / shift})

    hits, widths = [], []
    for study in range(args.studies):
        rng = np.random.default_rng(study)
        data = scores(truth, args.sd, seeds, blocks=("adaln_zero", "adaln"), rng=rng, cell_sd=misfit)
        [one] = compare_blocks(data, replicates=args.replicates).multipliers
        hits.append(MULTIPLIER in one.interval)
        widths.append(one.interval.high / one.interval.low)
    return ["blocks", str(seeds), f"{misfit:.0%}", f"{np.mean(hits):.1%}", "", "", "", f"{np.median(widths):.2f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--forms", nargs="*", default=[*FORMS, "blocks"], choices=[*FORMS, "blocks"])
    parser.add_argument("--loss", choices=list(LOSSES), default="huber")
    parser.add_argument("--sd", type=float, default=0.02, help="relative, between two runs of one cell")
    args = parser.parse_args()
    rows = []
    for form in args.forms:
        for seeds, misfit in ((1, 0.0), (3, 0.0), (3, MISFIT)):
            made = blocks_row(seeds, misfit, args) if form == "blocks" else row_of(form, seeds, misfit, args)
            print(" ".join(made), file=sys.stderr, flush=True)
            rows.append(made)
    heads = ["form", "seeds", "misfit", "law", "XL", "new run", "parameters", "width"]
    print(tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True))
    print(f"\n{args.studies} studies of each, {args.replicates} replicates, loss {args.loss}, noise {args.sd:.0%}")


if __name__ == "__main__":
    main()
