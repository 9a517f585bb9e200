"""Intervals hold what they promise: on simulated studies, 95 % intervals hold the truth in at least 90 % of cases.

A few studies each; `tests/benchmarks/coverage.py` prints the table over many.
"""

import numpy as np
import pytest
from simulated_scores import COMMON_STEP, STEPS, TRUTHS, cell, scores

from analysis.fits.blocks import compare_blocks
from analysis.fits.fit import fit_law
from analysis.fits.laws import FORMS
from analysis.fits.observations import VARIABLES

SD = 0.02


@pytest.mark.parametrize("form, seeds, studies", [("power", 1, 24), ("surface", 3, 16), ("surface+images", 1, 8)])
def test_intervals_of_a_law_and_of_a_new_run(form, seeds, studies):
    law_hits, run_hits, parameter_hits = [], [], []
    steps = STEPS if FORMS[form].steps == "all" else (COMMON_STEP,)
    new = [cell(size, 2, COMMON_STEP) for size in ("S", "B", "L", "XL")]
    columns = {name: np.array([float(row[name]) for row in new]) for name in VARIABLES}
    truth = [TRUTHS[form](row) for row in new]
    exact = fit_law(scores(TRUTHS[form], steps=steps, sizes=("S", "B", "L")), form, replicates=0)
    for study in range(studies):
        rng = np.random.default_rng(study)
        law = fit_law(scores(TRUTHS[form], SD, seeds, steps, ("S", "B", "L"), rng), form, replicates=150)
        for one, score in zip(law.predict(columns), truth):
            law_hits.append(score in one.confidence)
            run_hits.append(score * np.exp(SD * rng.standard_normal()) in one.prediction)
        parameter_hits += [
            true.value in found.interval for found, true in zip(law.parameters, exact.parameters) if found.interval
        ]
    assert np.mean(law_hits) >= 0.9 and np.mean(run_hits) >= 0.9 and np.mean(parameter_hits) >= 0.9


def test_intervals_of_a_multiplier():
    def truth(row):
        return TRUTHS["power"]({**row, "train_gflops": row["train_gflops"] / (2.0 if row["block"] == "adaln" else 1.0)})

    hits = []
    for study in range(12):
        data = scores(truth, SD, blocks=("adaln_zero", "adaln"), rng=np.random.default_rng(study), cell_sd=0.05)
        [one] = compare_blocks(data, replicates=150).multipliers
        hits.append(2.0 in one.interval)
    assert np.mean(hits) >= 0.9
