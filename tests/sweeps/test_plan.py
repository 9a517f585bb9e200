"""What a study will cost: a row per cell, and the bill of training and sampling."""

from dataclasses import replace

import pytest
from synthetic_study import cells

from dit.design import flops
from dit.design.rows import planned_row
from dit.store.study import Study
from sweeps.plan import COLUMNS, plan, total

RUNS = cells(blocks=("adaln_zero", "in_context"), sizes=("S",), patches=(4, 2), sampling=(4, 8), steps=1000)
STUDY = Study("mine", "", RUNS)


def test_a_plan_has_a_row_per_chosen_cell_in_order():
    rows = plan(STUDY, RUNS[1:])
    assert rows == [planned_row(run, "mine") for run in RUNS[1:]]
    assert set(COLUMNS) <= set(rows[0])


def test_sampling_counts_every_sample_of_every_evaluation():
    plain, scored_more = RUNS[0], RUNS[1]
    assert flops.scoring_gflops(plain) == pytest.approx(512 * 5 * 32 * flops.gflops(plain.model), rel=1e-12)
    assert flops.scoring_gflops(scored_more) == pytest.approx(
        512 * (5 * 32 + 4 + 8) * flops.gflops(scored_more.model), rel=1e-12
    )


def test_guidance_doubles_the_sampling():
    guided = replace(RUNS[0], evaluations=tuple(replace(e, cfg_scale=4.0) for e in RUNS[0].evaluations))
    assert flops.scoring_gflops(guided) == 2 * flops.scoring_gflops(RUNS[0])
    assert flops.scoring_gflops(replace(RUNS[0], evaluations=())) == 0


def test_the_bill_adds_up():
    bill = total(RUNS)
    assert bill.cells == 4
    assert bill.train_gflops == pytest.approx(sum(flops.gflops(run.model) * 64 * 1000 * 3 for run in RUNS), rel=1e-12)
    assert bill.sampling_gflops == pytest.approx(sum(map(flops.scoring_gflops, RUNS)), rel=1e-12)
    assert total(()) == type(bill)(0, 0, 0)
