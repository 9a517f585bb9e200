"""Blocks, frontier, isoFLOPs, sampling and correlations: planted answers come out, and what cannot be told is refused."""

import numpy as np
import pytest
from simulated_scores import COMMON_STEP, STEPS, TRUTHS, cell, observed, scores

from analysis.fits.blocks import compare_blocks
from analysis.fits.correlation import correlations, pearson
from analysis.fits.fit import NotIdentified, fit_law
from analysis.fits.frontier import frontier
from analysis.fits.isoflop import isoflop, minimum, polynomial
from analysis.fits.sampling import SamplingModel, sampling_law
from analysis.fits.validation import validate

PLANTED_MULTIPLIERS = {"adaln_zero": 1.0, "adaln": 1.6, "cross_attention": 2.5, "in_context": 4.0}


def of_blocks(row, law=TRUTHS["power+E"]):
    return law({**row, "train_gflops": row["train_gflops"] / PLANTED_MULTIPLIERS[row["block"]]})


def test_planted_multipliers_come_out_exactly():
    found = compare_blocks(scores(of_blocks, blocks=tuple(PLANTED_MULTIPLIERS)), replicates=200)
    assert found.reference == "adaln_zero" and found.exponent.value == pytest.approx(0.5, rel=1e-5)
    assert len(found.multipliers) == 3
    for one in found.multipliers:
        assert one.multiplier == pytest.approx(PLANTED_MULTIPLIERS[one.block], rel=1e-5)
        assert one.multiplier in one.interval and one.cells == 12 and one.score_ratio > 1 and one.said is None


def test_what_the_law_misses_in_a_cell_of_all_blocks_cancels():
    data = scores(of_blocks, sd=0.01, cell_sd=0.3, blocks=("adaln_zero", "adaln"), rng=np.random.default_rng(1))
    [one] = compare_blocks(data, replicates=300).multipliers
    assert one.multiplier == pytest.approx(1.6, rel=0.05)
    assert 1.6 in one.interval and one.interval.low > 1.1  # what is left is the exponent's uncertainty
    assert one.score_ratio_interval.high / one.score_ratio_interval.low < 1.2


def test_a_block_with_one_cell_says_so():
    data = scores(of_blocks, blocks=("adaln_zero", "adaln"))
    kept = data.at((data.rows["block"] == "adaln_zero") | (data.rows["size"] == "XL") & (data.rows["patch_size"] == 2))
    [one] = compare_blocks(kept, replicates=200).multipliers
    assert one.cells == 1 and "rests on 1 cell (XL/2)" in one.said and one.own_exponent is None
    assert one.multiplier == pytest.approx(1.6, rel=0.5)


def test_one_multiplier_is_doubted_where_exponents_differ():
    def truth(row):
        return 5 * (row["train_gflops"] / 1e9) ** (-0.2 if row["block"] == "adaln" else -0.5)

    notes = compare_blocks(scores(truth, sd=0.01, blocks=("adaln_zero", "adaln")), replicates=200).notes
    assert [note.kind for note in notes if note.kind == "exponents"]


def test_a_shared_exponent_that_reaches_its_bound_is_said():
    data = scores(of_blocks, sd=0.01, cell_sd=2.0, blocks=("adaln_zero", "adaln"), rng=np.random.default_rng(3))
    found = compare_blocks(data, replicates=200)
    assert "reaches its bound" in found.exponent.said and found.notes[0].kind == "at_bound"


def test_comparing_blocks_needs_two_that_share_cells():
    with pytest.raises(NotIdentified, match="there is one"):
        compare_blocks(scores(TRUTHS["power"]))
    data = scores(of_blocks, blocks=("adaln_zero", "adaln"))
    apart = data.at((data.rows["block"] == "adaln_zero") == (data.rows["size"] != "XL"))
    with pytest.raises(NotIdentified, match="no block shares a cell"):
        compare_blocks(apart)


def test_the_frontier_is_what_brute_force_finds():
    data = scores(TRUTHS["params+tokens+images"], sd=0.2, steps=STEPS, rng=np.random.default_rng(3))
    found = frontier(data)
    compute, score = data.column("train_gflops"), data.score
    undominated = [s for c, s in zip(compute, score) if not any(d <= c and t < s for d, t in zip(compute, score))]
    assert [p.score for p in found.points] == pytest.approx(sorted(undominated, reverse=True))
    assert [p.score for p in found.points] == sorted((p.score for p in found.points), reverse=True)
    for gap in found.gaps:
        assert (gap.ratio == pytest.approx(1.0)) == gap.on_frontier or gap.ratio > 1
    assert found.at(compute.min() / 2) is None and found.at(compute.max() * 2).score == pytest.approx(score.min())


def test_the_optimal_cell_is_certain_only_where_the_gap_is_larger_than_the_noise():
    rows = [
        {**cell(size, 2, COMMON_STEP), "train_gflops": 1e9 * 2**at, "fid": fid}
        for at, (size, fid) in enumerate([("S", 20.0), ("B", 20.02), ("L", 10.0)])
    ]
    found = frontier(observed(rows), budgets=2)
    first, last = found.optimal
    assert first.size == "S" and 0.3 < first.probability < 0.7 and first.candidates == 2
    assert last.size == "L" and last.probability == 1.0 and last.candidates == 3


def test_seeds_are_averaged_before_the_frontier():
    data = scores(TRUTHS["power"], sd=0.1, seeds=3)
    found = frontier(data)
    assert len(found.gaps) == 12
    sd = found.noise.relative_sd
    assert found.points[0].interval.high / found.points[0].score == pytest.approx(
        np.exp(1.96 * sd / np.sqrt(3)), rel=1e-4
    )


def test_a_planted_optimal_size_comes_out_of_the_isoflops():
    """E + A N^-a + B D^-b with Gflops proportional to N has N_opt ~ C^(b / (a + b)) in closed form."""
    a, b, big_a, big_b = 0.6, 0.7, 20.0, 30.0
    steps = tuple(int(step) for step in np.geomspace(3e3, 3e6, 16))
    data = scores(TRUTHS["params+images"], steps=steps)
    law = fit_law(data, "params+images", replicates=0)
    found = isoflop(data, "adaln_zero", 2, budgets=9, law=law)
    kept = [one for one in found.budgets if one.optimum_params is not None]
    assert len(kept) >= 3
    for one in kept:
        images_times_params = one.train_gflops / 3 / (0.68 * 256 / 1e9)
        k = images_times_params / (1e8 * 5e7)
        expected = 1e8 * (a * big_a / (b * big_b)) ** (1 / (a + b)) * k ** (b / (a + b))
        assert one.optimum_params == pytest.approx(expected, rel=0.15)
        assert one.parametric_params == pytest.approx(expected, rel=0.03)
        assert abs(one.disagreement) < 0.07 and one.optimum_params in one.optimum_interval
    assert found.exponent.value == pytest.approx(b / (a + b), abs=0.08)
    edges = [one for one in found.budgets if one.rejected]
    assert edges and all(one.optimum_params is None for one in edges)


def test_an_edge_minimum_is_rejected():
    x = np.array([-1.0, 0.0, 1.0, 2.0])
    assert minimum(polynomial(x, -x), -1.0, 2.0) is None
    assert minimum(polynomial(x, (x - 0.4) ** 2), -1.0, 2.0) == pytest.approx(0.4)
    assert minimum(polynomial(x, -((x - 0.4) ** 2)), -1.0, 2.0) is None
    falling = scores(TRUTHS["power"], steps=tuple(int(s) for s in np.geomspace(3e3, 3e6, 10)))
    found = isoflop(falling, "adaln_zero", 2)
    assert all(one.optimum_params is None and one.rejected for one in found.budgets)
    assert found.exponent.value is None and "three are needed" in found.exponent.said


def test_isoflops_need_curves_that_overlap():
    with pytest.raises(NotIdentified, match="no training compute is covered"):
        isoflop(scores(TRUTHS["power"]), "adaln_zero", 2)
    with pytest.raises(NotIdentified, match="no training compute is covered"):
        isoflop(scores(TRUTHS["power"], steps=STEPS), "adaln_zero", 16)


def sampled(base, counts=(8, 16, 32, 64, 128), amplitude=12.0, exponent=1.3, sd=0.0, sizes=("S", "B", "L")):
    rng = np.random.default_rng(0)
    rows = []
    for size in sizes:
        for count in counts:
            row = cell(size, 2, COMMON_STEP)
            score = base[size] * (1 + amplitude * count**-exponent) * np.exp(sd * rng.standard_normal())
            rows.append({**row, "sampling_steps": count, "sampling_gflops": row["gflops"] * count, "fid": score})
    return observed(rows)


BASES = {"S": 60.0, "B": 40.0, "L": 20.0}


def test_a_planted_sampling_law_comes_out_exactly():
    found = sampling_law(sampled(BASES), replicates=200)
    assert found.amplitude.value == pytest.approx(12.0, rel=1e-5)
    assert found.exponent.value == pytest.approx(1.3, rel=1e-5)
    for one in found.cells:
        assert one.base.value == pytest.approx(BASES[one.size], rel=1e-6) and one.base.value in one.base.interval
        assert one.own_exponent.value == pytest.approx(1.3, rel=1e-4)
        assert one.curve.y[-1] == pytest.approx(one.scores[-1], rel=1e-6)
        assert one.curve.x[-1] == pytest.approx(one.sampling_gflops[-1])


def test_sampling_does_not_buy_back_a_small_model_and_says_where_the_large_one_matches():
    found = sampling_law(sampled(BASES), replicates=200)
    [one] = [pair for pair in found.buy_back if (pair.smaller, pair.larger) == ("B/2", "L/2")]
    steps = (12.0 / (40 / 20 - 1)) ** (1 / 1.3)
    assert (
        one.bought_back is False
        and one.ratio == pytest.approx(2.0)
        and one.matching_steps == pytest.approx(steps, rel=1e-4)
    )
    gflops = {size: cell(size, 2, COMMON_STEP)["gflops"] for size in "BL"}
    assert one.saving == pytest.approx(128 * gflops["B"] / (steps * gflops["L"]), rel=1e-4)
    assert "no sampling compute brings B/2 to L/2" in one.said


def test_models_of_one_quality_are_not_told_apart():
    found = sampling_law(sampled({**BASES, "B": 20.0}, sd=0.02), replicates=200)
    [one] = [pair for pair in found.buy_back if (pair.smaller, pair.larger) == ("B/2", "L/2")]
    assert "not told apart" in one.said and one.bought_back is None
    assert found.said.endswith("in 0 of 3 pairs of cells, do not in 2, and 1 are not told apart.")


def test_a_small_model_that_ends_lower_is_bought_back():
    [one] = sampling_law(sampled({"B": 20.0, "L": 40.0}, sizes=("B", "L")), replicates=200).buy_back
    assert one.bought_back is True and "B/2 is better than L/2" in one.said


def test_an_exponent_of_sampling_steps_that_the_scores_leave_open_is_said():
    found = sampling_law(sampled(BASES, counts=(8, 12, 16), amplitude=0.02, sd=0.05), replicates=200)
    assert found.exponent.value is not None and "reaches its bound" in found.exponent.said
    assert sampling_law(sampled(BASES), replicates=200).exponent.said is None


def test_sampling_steps_that_buy_nothing_are_said():
    found = sampling_law(sampled(BASES, amplitude=0.0), replicates=200)
    assert found.amplitude.value is None and found.gain is None and found.notes[0].kind == "at_bound"


def test_a_sampling_law_needs_three_numbers_of_steps():
    with pytest.raises(NotIdentified, match="3 numbers of sampling steps"):
        sampling_law(sampled(BASES, counts=(8, 64)))
    found = sampling_law(sampled(BASES, counts=(8, 16, 64)), replicates=100)
    assert found.cells[0].own_exponent.value is None and "too few levels" in found.cells[0].own_exponent.said


def test_cells_that_do_not_gain_alike_are_said():
    flat = sampled({"S": 60.0}, amplitude=0.0, sizes=("S",)).rows.to_dict("records")
    data = observed([*flat, *sampled({"B": 40.0, "L": 20.0}, sizes=("B", "L")).rows.to_dict("records")])
    assert "lack_of_fit" in {note.kind for note in sampling_law(data, replicates=100).notes}
    assert not sampling_law(sampled(BASES), replicates=100).notes


def test_derivatives_of_the_sampling_law():
    model, group = SamplingModel(2), np.array([0, 1, 1])
    theta, u = np.array([0.3, 0.5, 0.7, 1.1]), np.array([[-1.0], [0.2], [0.9]])
    found = model.jacobian(theta[None], u, group)[0]
    for at in range(4):
        moved = [model.log_score((theta + step * np.eye(4)[at])[None], u, group)[0] for step in (1e-6, -1e-6)]
        np.testing.assert_allclose(found[:, at], (moved[0] - moved[1]) / 2e-6, atol=1e-8)


def test_partial_correlations_are_those_of_the_inverse_covariance():
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, 40)) + rng.normal(size=40)
    precision = np.linalg.inv(np.cov([x, y, z]))
    expected = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
    assert pearson(x, y, z) == pytest.approx(expected)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_what_sets_quality_is_found_and_said():
    by_gflops = correlations(scores(TRUTHS["power"], sd=0.02), "adaln_zero")
    assert (
        by_gflops.gflops_given_params.value < -0.98 and "at equal parameters, more Gflops: improves" in by_gflops.said
    )
    assert 0 in by_gflops.params_given_gflops.interval and "not distinguishable from 0" in by_gflops.said
    by_params = correlations(scores(lambda row: (row["params"] / 1e9) ** -0.3, sd=0.02), "adaln_zero")
    assert by_params.params_given_gflops.value < -0.9 and 0 in by_params.gflops_given_params.interval


def test_few_cells_have_no_interval_and_fewer_no_correlation():
    four = scores(TRUTHS["power"], sizes=("S", "B")).at(np.arange(6) < 4)
    assert correlations(four, "adaln_zero").gflops_score.interval is None
    with pytest.raises(NotIdentified, match="need 4 cells"):
        correlations(scores(TRUTHS["power"], sizes=("S",)), "adaln_zero")


def test_forward_validation_chooses_the_form_that_made_the_scores():
    found = validate(scores(TRUTHS["power"], sd=0.002), ("surface", "power"))
    assert found.chosen == "power"  # the surface holds it too, with more parameters
    assert "S, B -> L" in found.reason and "S, B, L -> XL" in found.reason
    found = validate(scores(TRUTHS["surface"], sd=0.002), ("power", "params+tokens", "surface"))
    assert found.chosen == "surface" and "S, B, L, XL/8 -> XL" in found.reason
    folds = [one for one in found.of("surface").folds if not one.begun]
    assert [(fold.fitted_on, fold.predicted) for fold in folds] == [(("S", "B"), "L"), (("S", "B", "L"), "XL")]
    assert found.of("params+tokens").refusals[0].reason.startswith("fitted on S, B: too few levels")
    assert found.of("surface").max_error < 0.05 < found.of("power").median_error
    for held in folds[1].held_out:
        assert held.error == pytest.approx(held.predicted / held.measured - 1)


def test_two_sizes_cannot_be_validated():
    found = validate(scores(TRUTHS["power"], sizes=("S", "B")), ("power",))
    assert found.chosen is None and "it needs three sizes, there are 2" in found.reason
