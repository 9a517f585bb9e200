"""Laws: planted ones come out exactly, the optimum is that of other optimisers, and what is not determined is said."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize, nnls
from simulated_scores import COMMON_STEP, STEPS, TRUTHS, cell, observed, scores

from analysis.fits import bootstrap, refine, varpro
from analysis.fits.fit import NotIdentified, fit_law, problem_of
from analysis.fits.laws import FORMS
from analysis.fits.noise import noise_of
from analysis.fits.observations import VARIABLES, main_block, observe
from analysis.results import collect
from dit.errors import UserError

PLANTED = {
    "power": {"A": 5 * 1e9**0.35, "a": 0.35},
    "power+E": {"E": 6, "A": 30 * 1e9**0.5, "a": 0.5},
    "params+tokens": {"E": 5, "A": 20 * 1e8**0.6, "a": 0.6, "B": 30 * 64**0.7, "b": 0.7},
    "params+images": {"E": 5, "A": 20 * 1e8**0.6, "a": 0.6, "B": 30 * 5e7**0.7, "b": 0.7},
    "params+tokens+images": {
        **{"E": 5, "A": 20 * 1e8**0.6, "a": 0.6, "B": 20 * 64**0.7},
        **{"b": 0.7, "G": 10 * 5e7**0.5, "g": 0.5},
    },
    "surface": {"c_NT": -0.11},
    "surface+images": {"c_NT": -0.11, "c_D": -0.3},
}


def values(law):
    return {one.name: one.value for one in law.parameters}


def kinds(law):
    return {note.kind for note in law.notes}


@pytest.fixture(scope="module")
def published():
    return observe(collect("paper")).of_block("adaln_zero")


@pytest.mark.parametrize("loss", ["huber", "squares"])
@pytest.mark.parametrize("form", FORMS)
def test_a_planted_law_comes_out_exactly_without_noise(form, loss):
    data = scores(TRUTHS[form], steps=STEPS if FORMS[form].steps == "all" else (COMMON_STEP,))
    law = fit_law(data, form, loss=loss, replicates=0)
    assert {name: value for name, value in values(law).items() if name in PLANTED[form]} == pytest.approx(
        PLANTED[form], rel=1e-5
    )
    far = {name: np.array([3.0 * cell("XL", 2, COMMON_STEP)[name]]) for name in VARIABLES}
    assert law.predict(far)[0].score == pytest.approx(TRUTHS[form]({name: x[0] for name, x in far.items()}), rel=1e-6)


def test_a_surface_is_told_where_the_data_are():
    """Its parameters are its value and its exponents at the data's geometric mean, by differences of the planted law."""
    law = fit_law(scores(TRUTHS["surface"]), "surface", replicates=0)
    found, middle = values(law), law.centre

    def log_truth(**moved):
        return np.log(TRUTHS["surface"]({**middle, **moved}))

    assert found["c"] == pytest.approx(log_truth())
    for name, variable in (("c_N", "params"), ("c_T", "tokens")):
        step = log_truth(**{variable: middle[variable] * 1.01}) - log_truth(**{variable: middle[variable] / 1.01})
        assert found[name] == pytest.approx(step / (2 * np.log(1.01)))


def test_every_form_is_planted():
    assert set(PLANTED) == set(TRUTHS) == set(FORMS)


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_are_those_of_finite_differences(form):
    shape, rng = FORMS[form], np.random.default_rng(0)
    groups = 3 if form == "power+E" else 1
    theta = rng.uniform(0.2, 1.0, shape.size + groups - 1)
    u, group = rng.normal(size=(7, len(shape.variables))), rng.integers(groups, size=7)
    found = shape.jacobian(theta[None], u, group)[0]
    for point in range(7):
        numeric = approx_fprime(theta, lambda at, point=point: shape.log_score(at[None], u, group)[0, point], 1e-7)
        np.testing.assert_allclose(found[point], numeric, atol=2e-6)


def test_amplitudes_are_those_of_scipys_non_negative_least_squares():
    rng = np.random.default_rng(0)
    columns, target = rng.normal(size=(40, 9, 4)), rng.normal(size=9)
    amplitudes, squares = varpro.nonnegative(columns, target)
    for matrix, found, square in zip(columns, amplitudes, squares):
        expected, norm = nnls(matrix, target)
        np.testing.assert_allclose(found, expected, atol=1e-9)
        assert square == pytest.approx(norm**2)
    assert (amplitudes == 0).any(1).sum() > 20


@pytest.mark.parametrize("form", ["power+E", "params+tokens", "surface"])
def test_the_optimum_is_not_beaten_by_a_search_without_derivatives(published, form):
    data, shape = published.at_common_step(), FORMS[form]
    law = fit_law(data, form, loss="huber", replicates=0)
    estimate = law.estimate
    u = np.log(np.stack([data.column(name) for name in shape.variables], axis=1)) - estimate.centers
    problem, target = problem_of(shape, u, "huber"), np.log(data.score / estimate.scale)
    bounds = list(zip(*shape.bounds()))

    def loss(theta):
        clipped = np.clip(theta, *shape.bounds())[None]
        return problem.loss(clipped, target[None], np.ones((1, len(target))), refine.DELTA)[0]

    ours = loss(estimate.theta)
    for start in (estimate.theta, estimate.theta + 0.05):
        options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 4000, "adaptive": True}
        found = minimize(loss, start, method="Nelder-Mead", bounds=bounds, options=options)
        assert ours <= found.fun * (1 + 1e-6)


def test_huber_shrugs_off_a_broken_score_that_moves_least_squares():
    data = scores(TRUTHS["power"])
    data.rows.loc[3, "fid"] *= 4
    robust, squares = (values(fit_law(data, "power", loss=loss, replicates=0))["a"] for loss in ("huber", "squares"))
    assert robust == pytest.approx(0.35, abs=2e-3)
    assert abs(squares - 0.35) > 0.02


def test_an_irreducible_score_at_its_bound_is_said_not_printed(published):
    law = fit_law(published, "power+E", replicates=200)
    irreducible = law.parameters[0]
    assert irreducible.name == "E" and irreducible.value is None and irreducible.interval is None
    assert irreducible.said.startswith("at its bound 0: not identified")
    assert "at_bound" in kinds(law)
    assert law.to_json()["parameters"][0]["value"] is None


def test_a_term_that_is_not_there_leaves_its_exponent_undetermined():
    data = scores(lambda row: 30 * (row["tokens"] / 64) ** -0.7)
    law = fit_law(data, "params+tokens", replicates=0)
    found = {one.name: one for one in law.parameters}
    assert found["A"].value is None and found["a"].value is None
    assert found["a"].said == "not identified: its amplitude A is at its bound 0"
    assert found["b"].value == pytest.approx(0.7, rel=1e-5)


@pytest.mark.parametrize(
    "sizes, form, said",
    [
        (("S", "B"), "params+tokens", "too few levels: params+tokens needs 3 of N (params), there are 2"),
        (("S",), "surface", "too few levels: surface needs 2 of N (params), there are 1"),
        (("S",), "power+E", "too few levels: power+E needs 4 of C (train_gflops), there are 3"),
        (("S", "B", "L"), "params+images", "needs two cells scored at 3 training steps, there are 1"),
    ],
)
def test_too_few_levels_are_refused(sizes, form, said):
    with pytest.raises(NotIdentified) as refused:
        fit_law(scores(TRUTHS["power"], sizes=sizes), form)
    assert said in str(refused.value)


def test_two_levels_are_said():
    law = fit_law(scores(TRUTHS["surface"], sizes=("S", "B")), "surface", replicates=0)
    assert "too_few_levels" in kinds(law)


def test_blocks_are_not_mixed_in_one_law():
    with pytest.raises(NotIdentified, match=r"several blocks \(adaln, adaln_zero\)"):
        fit_law(scores(TRUTHS["power"], blocks=("adaln", "adaln_zero")), "power")


def test_unknown_names_are_one_line():
    data = scores(TRUTHS["power"])
    with pytest.raises(UserError, match="unknown form 'cubic': expected one of power,"):
        fit_law(data, "cubic")
    with pytest.raises(UserError, match="unknown loss 'mean'"):
        fit_law(data, "power", loss="mean")


def test_a_form_that_misses_something_says_so(published):
    assert "lack_of_fit" in kinds(fit_law(published, "power", replicates=0))
    bent = scores(lambda row: 5 * np.exp(0.1 * np.log(row["train_gflops"] / 1e9) ** 2))
    assert {"trend", "lack_of_fit"} <= kinds(fit_law(bent, "power", replicates=0))
    assert not kinds(fit_law(scores(TRUTHS["power"], sd=0.01), "power", replicates=0))


def test_a_larger_size_that_scores_worse_is_said():
    data = scores(TRUTHS["power"])
    data.rows.loc[data.rows["size"] == "XL", "fid"] *= 3
    assert "not_monotone" in kinds(fit_law(data, "power", replicates=0))


def test_fits_are_deterministic(published):
    first, second = (fit_law(published, "surface", replicates=100) for _ in range(2))
    assert first.to_json() == second.to_json()
    np.testing.assert_array_equal(first.estimate.replicates, second.estimate.replicates)


def test_the_order_of_rows_does_not_matter(published):
    data = published.at_common_step()
    shuffled = observed(list(reversed(data.rows.to_dict("records"))))
    ours, theirs = (values(fit_law(one, "params+tokens", replicates=0)) for one in (data, shuffled))
    assert {name: value for name, value in ours.items() if value} == pytest.approx(
        {name: value for name, value in theirs.items() if value}, rel=1e-3
    )


def test_curves_carry_bands_and_say_where_the_data_end(published):
    law = fit_law(published, "power", replicates=200)
    curve = law.curve("train_gflops", points=20, reach=1.0)
    seen = published.at_common_step().column("train_gflops")
    assert curve.measured == (seen.min(), seen.max())
    assert curve.x[0] == pytest.approx(seen.min() / 10) and curve.x[-1] == pytest.approx(seen.max() * 10)
    for low, high in ((curve.confidence_low, curve.confidence_high), (curve.prediction_low, curve.prediction_high)):
        assert all(a < b < c for a, b, c in zip(low, curve.y, high))
    assert curve.prediction_low[-1] < curve.confidence_low[-1]
    wide = [np.log(high / low) for low, high in zip(curve.confidence_low, curve.confidence_high)]
    assert wide[0] > wide[10] < wide[-1]


def test_a_curve_needs_the_other_variables_held(published):
    law = fit_law(published, "surface", replicates=0)
    with pytest.raises(UserError, match="varies with tokens too"):
        law.curve("params")
    with pytest.raises(UserError, match="has no train_gflops"):
        law.curve("train_gflops")
    assert law.curve("params", tokens=256).y[-1] == pytest.approx(19.5, abs=0.5)


def test_noise_is_of_repeated_seeds_where_there_are_any():
    assert noise_of(scores(TRUTHS["power"])).relative_sd == 0.013
    found = noise_of(scores(TRUTHS["power"], sd=0.05, seeds=4))
    assert found.relative_sd == pytest.approx(0.05, rel=0.25) and found.degrees_of_freedom == 33
    other = observed(scores(TRUTHS["power"]).rows.to_dict("records"), "FD (digits features, 512 samples)", "digits")
    assert noise_of(other).relative_sd is None and "unknown" in noise_of(other).source


def test_resampling_moves_cells_together_and_none_too_little():
    residual = np.array([0.1, 0.3, -0.2, -0.1, 0.0, 0.0])
    cells, runs = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 2, 3])
    moved = bootstrap.perturbations(residual, cells, cells, runs, 1, 0.0, 4000, np.random.default_rng(0))
    np.testing.assert_allclose(moved[:, 0] + (moved[:, 1] - moved[:, 0]) / 2, moved[:, :2].mean(1))
    assert np.corrcoef(moved[:, 4], moved[:, 5])[0, 1] == pytest.approx(1.0)
    assert moved[:, 4].std() > 0.1  # a cell without residuals varies as the others' means do
    alone = bootstrap.perturbations(residual * 0, cells, cells, runs, 1, 0.02, 4000, np.random.default_rng(0))
    assert alone[:, 0].std() == pytest.approx(0.02, rel=0.1)
    assert alone[:, 4].std() == pytest.approx(0.02 / np.sqrt(2), rel=0.1)  # two runs


def test_the_main_block_is_adaln_zero_where_it_has_a_grid():
    assert main_block(scores(TRUTHS["power"], blocks=("adaln", "adaln_zero"))) == "adaln_zero"
    few = scores(TRUTHS["power"], blocks=("adaln", "adaln_zero"))
    kept = few.at((few.rows["block"] == "adaln") | (few.rows["size"] == "S") & (few.rows["patch_size"] == 2))
    assert main_block(kept) == "adaln"


def test_scores_that_have_no_logarithm_are_named():
    study = collect("paper")
    study.table.loc[study.table["run"] == "DiT-S/8", "fid"] = 0.0
    with pytest.raises(UserError, match=r"fid of run DiT-S/8 is 0\.0"):
        observe(study)
