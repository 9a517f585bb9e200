"""Advice: the variance of a forecast against explicit algebra, cells that cannot reach the frontier, candidates and their cost."""

import json

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from synthetic_study import cells, write_study

from analysis import advise as module
from analysis.advise import advise
from analysis.fits.fit import fit_law
from analysis.fits.observations import observe
from analysis.results import collect
from analysis.targets import planned_targets
from dit.cli import main
from dit.design import flops

BLOCKS = ("adaln_zero", "in_context")
RUNS = cells(blocks=BLOCKS, sampling=(), seeds=(0, 1))
RUN_NOW = tuple(run for run in RUNS if run.model.size != "XL" and (run.seed == 0 or run.model.size == "S"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("advise") / "study", RUNS, run_now=RUN_NOW, images=False)


@pytest.fixture(scope="module")
def advice(folder):
    study = collect(folder)
    return advise(study.where("step >= 600"), "XL/1")


def explicit_variance(law, rows, aim):
    """g' (J' V^-1 J)^-1 g with finite differences and the whole covariance; rows are (cell, run, columns)."""
    estimate, noise = law.estimate, law.noise.relative_sd

    def derivative(columns):
        at = {name: np.array([float(columns[name])]) for name in law.variables}
        return approx_fprime(estimate.theta, lambda theta: estimate.log_score(theta[None], at)[0, 0], 1e-7)

    jacobian = np.array([derivative(columns) for *_, columns in rows])
    cell, run = ([row[at] for row in rows] for at in (0, 1))
    same_cell = np.array([[a == b for b in cell] for a in cell])
    same_run = np.array([[a == b for b in run] for a in run])
    part = 1 / (1 + 3.2**2)
    covariance = (law.residual_sd**2 - noise**2) * same_cell + noise**2 * (1 - part) * same_run
    covariance = covariance + noise**2 * part * np.eye(len(rows))
    g = derivative(aim)
    return g @ np.linalg.solve(jacobian.T @ np.linalg.solve(covariance, jacobian), g)


def test_the_variance_is_that_of_explicit_algebra(folder, advice):
    observations = observe(collect(folder).where("step >= 600"))
    ours = observations.of_block("adaln_zero")
    law = fit_law(ours, advice.form)
    data = law.estimate.data.rows.to_dict("records")
    rows = [((row["size"], row["patch_size"]), row["run"], row) for row in data]
    targets = {one.name: one for one in planned_targets(collect(folder), observations)}
    aim = targets["adaln_zero XL/1"]
    before = explicit_variance(law, rows, aim.at(1000))
    seed = next(one for one in advice.candidates if one.kind == "seed" and one.cell == "adaln_zero L/1")
    assert seed.sd_before == pytest.approx(np.sqrt(before), rel=1e-3)
    steps = sorted({row["step"] for row in data})
    another = targets["adaln_zero L/1"]
    added = [*rows, *((("L", 1), "another", another.at(step)) for step in steps)]
    after = explicit_variance(law, added, aim.at(1000))
    assert seed.sd_after == pytest.approx(np.sqrt(after), rel=1e-3)
    assert seed.cost_gflops == pytest.approx(another.at(1000)["train_gflops"])
    assert seed.reduction_per_gflop == pytest.approx((before - after) / seed.cost_gflops, rel=1e-2)


def test_candidates_are_sorted_and_cost_what_training_costs(advice):
    per_gflop = [one.reduction_per_gflop for one in advice.candidates]
    assert per_gflop == sorted(per_gflop, reverse=True) and per_gflop[0] > 0
    by_cell = {(one.kind, one.cell): one for one in advice.candidates}
    [run] = [
        run
        for run in RUNS
        if (run.model.block, run.model.size, run.model.patch_size, run.seed) == (BLOCKS[0], "XL", 2, 0)
    ]
    assert by_cell["planned", "adaln_zero XL/2"].cost_gflops == pytest.approx(flops.train_gflops(run, run.steps))
    assert not [one for one in advice.candidates if one.cell == "adaln_zero XL/1"]
    assert all(one.sd_after <= one.sd_before for one in advice.candidates)
    assert advice.largest.sd_after == min(one.sd_after for one in advice.candidates)
    assert advice.target == "adaln_zero XL/1 at step 1000"


def test_a_worse_block_cannot_reach_the_frontier(advice):
    hopeless = {one.cell: one for one in advice.hopeless}
    measured = {f"in_context {size}/{patch}" for size in ("S", "B", "L") for patch in (4, 2, 1)}
    assert measured <= set(hopeless) and not [cell for cell in hopeless if cell.startswith("adaln_zero")]
    assert all(one.interval.low > 1 and one.measured for cell, one in hopeless.items() if cell in measured)
    planned = [one for one in (*advice.hopeless, *advice.undecided) if one.cell.startswith("in_context XL")]
    assert planned and all(not one.measured and "forecast" in one.said for one in planned)


def test_unless_told_the_dearest_open_cell_is_the_target(folder):
    observations = observe(collect(folder))
    targets = planned_targets(collect(folder), observations)
    assert module._aim(observations, targets, None).name == "adaln_zero XL/1"
    assert module._aim(observations, targets, "S").name == "adaln_zero S/1"


def test_longer_runs_are_offered_only_where_the_form_knows_steps(folder, advice, monkeypatch):
    kinds = {one.kind for one in advice.candidates}
    fitted = {"surface+images": True, "params+tokens+images": True, "params+images": True}
    assert ("longer" in kinds) == fitted.get(advice.form, False)
    monkeypatch.setattr(
        module, "_law", lambda ours, loss: (fit_law(ours, "surface+images"), module.validate(ours, ("power",)))
    )
    monkeypatch.setattr(module, "_above", lambda *_: [])
    found = advise(collect(folder), "XL/1").candidates
    [longer] = [one for one in found if one.kind == "longer" and one.cell == "adaln_zero L/1"]
    [seed] = [one for one in found if one.kind == "seed" and one.cell == "adaln_zero L/1"]
    assert longer.step == 2000 and longer.cost_gflops == pytest.approx(seed.cost_gflops)


def test_advice_of_a_finished_study_says_that_the_score_is_known(capsys):
    assert main(["advise", "paper", "--top", "3"]) == 0
    printed = capsys.readouterr().out
    assert "adaln_zero XL/2 has its score already" in printed and "in_context XL/2" in printed.split("Next run")[0]


def test_without_seeds_the_noise_is_unknown_and_said(folder):
    study = collect(folder).where("seed == 0 and step >= 600")
    found = advise(study, "XL/1")
    assert not [one for one in found.candidates if one.kind == "seed"]
    assert any("second seeds cannot be valued" in note.text for note in found.notes)
    assert all(one.interval.high > one.ratio for one in (*found.hopeless, *found.undecided))


def test_advice_as_json(folder, advice, capsys, monkeypatch):
    monkeypatch.setattr(module, "advise", lambda study, target: advice)
    assert main(["advise", str(folder), "--for", "XL/1", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["target"] == "adaln_zero XL/1 at step 1000" and value["candidates"] and value["hopeless"]
    assert main(["advise", str(folder), "--top", "0"]) == 2
    assert "--top 0" in capsys.readouterr().err
