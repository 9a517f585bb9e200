"""What an independent review of the conclusions found wrong, each with its right value."""

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import t as student
from simulated_scores import COMMON_STEP, TRUTHS, cell, observed, scores

from analysis.fits.blocks import compare_blocks
from analysis.fits.correlation import permuted
from analysis.fits.fit import NotIdentified, fit_law
from analysis.fits.frontier import frontier
from analysis.fits.isoflop import isoflop
from analysis.fits.noise import crossed, noise_of
from analysis.fits.observations import VARIABLES, observe
from analysis.fits.record import interval, new_score_limits
from analysis.fits.sampling import sampling_law
from analysis.fits.steps import step_factors
from analysis.fits.validation import validate
from analysis.results import collect
from analysis.training_loss import as_scores


@pytest.fixture(scope="module")
def losses():
    return observe(as_scores(collect("docs/studies/mnist.tar.xz")))


@pytest.fixture(scope="module")
def published():
    return observe(collect("paper")).of_block("adaln_zero")


def test_what_a_seed_does_to_all_cells_is_no_noise_between_them(losses):
    at = losses.at(((losses.rows["step"] == 1000) & (losses.rows["patch_size"] < 8)).to_numpy())
    found = noise_of(at)
    assert found.single_sd == pytest.approx(0.135, abs=5e-4) and found.relative_sd == pytest.approx(0.043, abs=5e-4)
    assert found.degrees_of_freedom == 62


def test_crossed_seeds_are_the_closed_form_of_a_full_table():
    y = np.random.default_rng(0).normal(size=(5, 3))
    left, degrees = crossed(y.ravel(), np.repeat(np.arange(5), 3), np.tile(np.arange(3), 5))
    expected = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
    np.testing.assert_allclose(left, expected.ravel(), atol=1e-12)
    assert degrees == (5 - 1) * (3 - 1)


def test_cells_that_do_not_vary_alike_have_bars_of_their_own():
    """Half of the cells at 1 %, half at 15 %: the bar of a cell's mean holds it in 95 % of cases in either half."""
    hits = {0.01: [], 0.15: []}
    for study in range(150):
        rng = np.random.default_rng(study)
        data = scores(TRUTHS["power"], seeds=3)
        sd = np.where(data.rows["patch_size"] == 2, 0.15, 0.01)
        truth = data.score.copy()
        data.rows["fid"] = truth * np.exp(sd * rng.standard_normal(len(data)))
        noise = noise_of(data)
        for place in noise.logs:
            here = (data.rows["size"] == place[1]) & (data.rows["patch_size"] == place[2])
            hits[0.15 if place[2] == 2 else 0.01].append(truth[here][0] in noise.interval(place))
        assert not noise.equal
    assert 0.93 <= np.mean(hits[0.01]) <= 0.97 and 0.93 <= np.mean(hits[0.15]) <= 0.97


def test_the_frontier_keeps_what_a_cell_once_reached():
    rows = [{**cell("S", 2, step), "fid": fid} for step, fid in ((50_000, 30.0), (100_000, 20.0), (200_000, 25.0))]
    rows += [{**cell("B", 2, step), "fid": fid} for step, fid in ((50_000, 40.0), (100_000, 24.0), (200_000, 22.0))]
    found = frontier(observed(rows))
    assert found.optimal[-1].size == "S" and found.optimal[-1].score == pytest.approx(20.0)
    assert min(one.score for one in found.points) == pytest.approx(20.0)
    for one in found.optimal:
        assert one.score <= found.at(one.train_gflops).score * (1 + 1e-9)


def test_intervals_of_no_width_are_none():
    assert interval(np.full(100, 0.3) + 1e-16 * np.arange(100)) is None
    steps = tuple(int(step) for step in np.geomspace(3e3, 3e6, 16))
    rows = scores(TRUTHS["params+images"], steps=steps).rows.to_dict("records")
    found = isoflop(observed(rows, "FD", "digits"), "adaln_zero", 2, budgets=9)
    assert found.exponent.value is not None and found.exponent.interval is None
    assert all(one.optimum_interval is None for one in found.budgets)


def test_three_sizes_let_a_form_that_needs_them_be_chosen():
    data = scores(TRUTHS["params+tokens"], 0.01, sizes=("S", "B", "L"), rng=np.random.default_rng(0))
    found = validate(data, ("power", "power+E", "params+tokens", "surface"))
    assert found.chosen == "params+tokens" and "it could not be fitted on S, B" in found.reason
    assert [fold.begun for fold in found.of("params+tokens").folds] == [True]


def test_a_fold_that_one_form_cannot_do_still_counts_for_the_others():
    """B and L far off the law of S, L and XL: a form that predicts L from S and B badly is not chosen for XL alone."""
    data = scores(TRUTHS["surface"], sd=0.002)
    found = validate(data, ("power+E", "params+tokens", "surface"))
    assert "S, B -> L" in found.reason and "largest error" in found.reason and "rms" in found.reason
    assert found.chosen == "surface"


def test_an_exponent_is_as_wide_as_students_t_of_cell_means():
    widths, ideal = [], []
    for study in range(20):
        data = scores(TRUTHS["power"], 0.1, sizes=("S", "B", "L"), rng=np.random.default_rng(study))
        between = fit_law(data, "power", replicates=300).parameters[1].interval
        x = np.log(data.column("train_gflops")) - np.log(data.column("train_gflops")).mean()
        y = np.log(data.score)
        slope, level = np.polyfit(x, y, 1)
        variance = np.sum((y - level - slope * x) ** 2) / 7 / np.sum(x**2)
        widths.append(between.high - between.low)
        ideal.append(2 * student.ppf(0.975, 7) * np.sqrt(variance))
    assert np.mean(widths) / np.mean(ideal) == pytest.approx(1.0, abs=0.15)


def test_the_exponents_of_the_published_surface_are_those_of_the_data(published):
    law = fit_law(published, "surface", loss="huber", replicates=0)
    found = {one.name: one.value for one in law.parameters}
    for tokens, exponent in ((16, -0.108), (64, -0.262), (256, -0.416)):
        local = found["c_N"] + found["c_NT"] * np.log(tokens / law.centre["tokens"])
        assert local == pytest.approx(exponent, abs=1.5e-3)
    [said] = [note.text for note in law.notes if note.kind == "local"]
    assert "-0.108 at T = 16" in said and "in T -0.277 at N" in said and "-0.612 at N" in said


def test_bands_are_solved_and_do_not_depend_on_what_is_asked_beside(published):
    law = fit_law(published, "surface", replicates=200)
    one = {name: published.column(name)[:1] for name in VARIABLES}
    many = {name: published.column(name)[:9] for name in VARIABLES}
    assert law.predict(one)[0].prediction == law.predict(many)[0].prediction
    means, sd = np.random.default_rng(0).normal(size=(300, 4)), 0.4
    limits = new_score_limits(means, sd)
    for limit, share in zip(limits, (0.025, 0.975)):
        np.testing.assert_allclose(ndtr((limit - means) / sd).mean(0), share, atol=1e-9)


def test_a_sampling_law_that_does_not_fit_is_refused():
    rng = np.random.default_rng(0)
    rows = [
        {**cell(size, 2, COMMON_STEP), "sampling_steps": count, "sampling_gflops": count * 1.0, "fid": score}
        for size in ("S", "B", "L")
        for count, score in zip((4, 8, 16, 32, 64), 50 * np.exp(0.5 * rng.standard_normal(5)))
    ]
    with pytest.raises(NotIdentified, match=r"cells do not gain alike: scatter about the shared law is \d+"):
        sampling_law(observed(rows), replicates=100)


def test_chance_of_a_correlation_is_that_of_dealing_scores_at_random():
    x = np.arange(5.0)
    assert permuted(x, -x) == pytest.approx(2 / 120, abs=0.01)  # two of the 120 orders are as strong
    assert permuted(x, np.array([1.0, -1.0, 0.0, -1.0, 1.0])) == pytest.approx(1.0)


def test_few_scores_that_decide_are_said():
    data = scores(TRUTHS["power"], 0.01, rng=np.random.default_rng(0))
    assert "robust" not in {note.kind for note in fit_law(data, "power", replicates=100).notes}


def test_young_averages_are_left_out_of_laws_unless_asked_for():
    from dataclasses import replace

    study = collect("paper")
    study.table["step"] = study.table["step"].where(study.table["run"] != "DiT-S/2", 40_000)
    found, all_of_them = observe(study), observe(replace(study, with_young_averages=True))
    assert "left out (--with-young-averages uses them)" in found.young and "used, as asked for" in all_of_them.young
    assert "DiT-S/2" not in set(found.rows["run"]) and "DiT-S/2" in set(all_of_them.rows["run"])
    assert found.left_out == all_of_them.left_out


def test_blocks_of_the_mnist_study_as_factors_of_training_steps(losses):
    small = losses.at((losses.rows["patch_size"] < 8).to_numpy())
    found = {one.block: one for one in step_factors(small, "adaln_zero")}
    for block, factor in (("adaln", 1.46), ("cross_attention", 1.53), ("in_context", 1.64)):
        assert found[block].factor == pytest.approx(factor, abs=0.005) and found[block].factor in found[block].interval
        assert found[block].interval.low > 1
    refused = step_factors(losses, "adaln_zero")
    assert all(one.factor is None and one.said.startswith("lack of fit") for one in refused)


def test_blocks_of_the_mnist_study_as_ratios_and_multipliers(losses):
    found = {one.block: one for one in compare_blocks(losses, replicates=200).multipliers}
    for block, ratio, low, high in (
        ("adaln", 1.087, 1.051, 1.124),
        ("cross_attention", 1.119, 1.079, 1.160),
        ("in_context", 1.128, 1.087, 1.170),
    ):
        one = found[block]
        assert [one.score_ratio, one.score_ratio_interval.low, one.score_ratio_interval.high] == pytest.approx(
            [ratio, low, high], abs=1.5e-3
        )
        assert one.multiplier is None and "lack of fit: without patch size 8" in one.said
    small = losses.at((losses.rows["patch_size"] < 8).to_numpy())
    without = {one.block: one.multiplier for one in compare_blocks(small, replicates=200).multipliers}
    assert without == pytest.approx({"adaln": 3.59, "cross_attention": 4.69, "in_context": 5.47}, abs=0.02)
