"""The training loss in the place of scores: means by hand, cells kept, and what has no losses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from synthetic_study import cells, write_study

from analysis.results import collect, losses
from analysis.training_loss import as_scores
from dit.cli import main
from dit.errors import UserError

RUNS = cells(blocks=("adaln_zero", "adaln"), sizes=("S", "B", "L"), patches=(4, 2), seeds=(0, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("loss") / "study", RUNS, failed={3: "stopped"})


def test_each_scored_step_gets_the_mean_of_the_window_before_it(folder):
    study = as_scores(collect(folder))
    assert (
        len(study.table) == 5 * (len(RUNS) - 1) + 2
    )  # once for each scored step, however many protocols; one run stopped halfway
    logged = losses(folder)
    for _, row in study.table.sample(12, random_state=0).iterrows():
        mine = logged[logged["run"] == row["run"]]
        inside = mine[(mine["step"] <= row["step"]) & (mine["step"] > row["step"] - 100)]["loss"]
        assert len(inside) == 10
        assert row["training_loss"] == pytest.approx(np.mean(inside), rel=1e-12)
    assert study.metrics == ["training_loss"]
    assert study.table["protocol"].nunique() == 1 and study.table["sampling_steps"].isna().all()


def test_fits_are_made_of_it(folder, capsys):
    assert main(["fit", str(folder), "--of", "training_loss", "--replicates", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["label"]) == ("training_loss", "training loss (mean of 100 steps)")
    assert found["scores"] == 5 * (len(RUNS) - 1) + 2
    assert {block["block"] for block in found["blocks"]["multipliers"]} == {"adaln"}


def test_published_numbers_have_no_losses(capsys):
    with pytest.raises(UserError, match="'paper' has no logged losses: give a study's folder"):
        as_scores(collect("paper"))
    assert main(["fit", "paper", "--of", "training_loss"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
