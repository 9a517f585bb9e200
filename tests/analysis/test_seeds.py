"""Means over seeds: against the standard library's statistics, and what counts as one cell."""

import statistics
from dataclasses import replace

import numpy as np
import pytest
from synthetic_study import cells, score_of, write_study

from analysis.figures.registry import drawn
from analysis.fits.observations import observe
from analysis.report.page import render
from analysis.results import collect
from analysis.style import STYLES
from dit.design.config import OptimConfig
from dit.design.rows import columns_over_seeds
from dit.errors import UserError

RUNS = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4,), seeds=(0, 1, 2), sampling=())


def test_mean_deviation_and_count_of_each_cell_and_step(tmp_path):
    table = collect(write_study(tmp_path / "demo", RUNS)).over_seeds()
    assert list(table.columns) == columns_over_seeds(["fd_digits"])
    assert len(table) == 2 * 5
    for row in table.to_dict("records"):
        same = [run for run in RUNS if run.model.size == row["size"]]
        scores = [score_of(run, e) for run in same for e in run.evaluations if e.step == row["step"]]
        assert row["fd_digits"] == pytest.approx(statistics.mean(scores), rel=1e-12)
        assert row["fd_digits_sd"] == pytest.approx(statistics.stdev(scores), rel=1e-9)
        assert row["n"] == 3
        assert row["train_gflops"] > 0


def test_a_failed_seed_is_not_counted_and_one_seed_has_no_deviation(tmp_path):
    study = collect(write_study(tmp_path / "demo", RUNS, failed={0: "stopped", 1: "stopped"}))
    last = study.over_seeds().query("step == 1000").set_index("size")
    assert last["n"].to_dict() == {"S": 1, "B": 3}
    assert np.isnan(last["fd_digits_sd"]["S"])


def test_runs_that_differ_in_more_than_their_seed_are_not_averaged(tmp_path):
    fast = replace(RUNS[0], optim=OptimConfig(learning_rate=1e-3))
    table = collect(write_study(tmp_path / "demo", (RUNS[0], RUNS[1], fast))).over_seeds().query("step == 1000")
    assert sorted(table["n"]) == [1, 2]
    assert table["recipe"].nunique() == 2


def test_a_score_that_the_paper_prints_in_two_tables_counts_once():
    table = collect("paper").over_seeds()
    assert set(table["n"]) == {1}
    assert table["fid_sd"].isna().all()
    assert len(table.query("fid == 2.27")) == 1
    assert set(table["source"]) == {"paper"}
    assert table["citation"].notna().all()


def test_no_score_among_the_rows_is_an_empty_table(tmp_path):
    study = collect(write_study(tmp_path / "demo", RUNS)).where("size == 'XL'")
    assert study.over_seeds().empty
    assert list(study.over_seeds().columns) == columns_over_seeds(["fd_digits"])


def test_what_differs_in_more_than_the_seed_is_never_on_one_curve_nor_in_one_fit(tmp_path):
    """Two learning rates of one cell: every figure, fit and report that would take their mean refuses, and names both."""
    runs = cells(sizes=("S", "B", "L"), patches=(4,), blocks=("adaln_zero",), seeds=(0, 1))
    fast = tuple(replace(run, optim=OptimConfig(learning_rate=1e-3)) for run in runs)
    study = collect(write_study(tmp_path / "demo", (*runs, *fast)))
    message = r"adaln_zero S/4 was trained with learning_rate=0\.0001 and with learning_rate=0\.001"
    for name in ("fig6", "fig7", "fig9", "fig10", "fig13", "frontier", "forecast"):
        with pytest.raises(UserError, match=message):
            drawn(study, name, STYLES["paper"])
    for refused in (observe, render):
        with pytest.raises(UserError, match=message):
            refused(study)
    one = study.where("variant == 'learning_rate=0.001'")
    assert set(observe(one).rows["run"]) == {run.run for run in fast}
    assert drawn(one, "fig9", STYLES["paper"]).rows["run"].nunique() == len(fast)
    table = study.over_seeds()
    assert set(table["variant"]) == {"learning_rate=0.0001", "learning_rate=0.001"}
    assert set(table["n"]) == {2}
