"""The published numbers: the correlation that the paper prints, XL/2 from smaller sizes, and what these twelve cells cannot tell."""

import numpy as np
import pytest

from analysis.fits.blocks import compare_blocks
from analysis.fits.correlation import correlations
from analysis.fits.fit import fit_law
from analysis.fits.frontier import frontier
from analysis.fits.methods import methods_box
from analysis.fits.observations import VARIABLES, observe
from analysis.fits.validation import validate
from analysis.results import collect


@pytest.fixture(scope="module")
def published():
    return observe(collect("paper"))


@pytest.fixture(scope="module")
def zero(published):
    return published.of_block("adaln_zero")


@pytest.fixture(scope="module")
def small(zero):
    return zero.at(zero.labels("size") != "XL")


@pytest.fixture(scope="module")
def validation(zero):
    return validate(zero, ("power", "params+tokens", "surface", "params+images"))


def at_xl2(zero):
    row = zero.rows[(zero.rows["run"] == "DiT-XL/2") & (zero.rows["step"] == 400_000)].iloc[0]
    return {name: np.array([float(row[name])]) for name in VARIABLES}


def test_the_correlation_is_the_papers(published):
    found = correlations(published, "adaln_zero")
    assert found.gflops_score.value == pytest.approx(-0.9298, abs=1e-4) and found.gflops_score.cells == 12
    assert found.gflops_log_score.value == pytest.approx(-0.936, abs=1e-3)
    assert found.gflops_rank.value == pytest.approx(-0.916, abs=1e-3)
    assert found.params_log_score.value == pytest.approx(-0.503, abs=1e-3)
    assert found.gflops_given_params.interval.high < 0


@pytest.mark.parametrize(
    "form, predicted", [("power", 24.7), ("power+E", 23.7), ("params+tokens", 22.3), ("surface", 19.6)]
)
def test_xl2_from_smaller_sizes_by_least_squares(zero, small, form, predicted):
    """The loss unless told, whose numbers are those of any least squares routine."""
    law = fit_law(small, form, replicates=0)
    assert law.predict(at_xl2(zero))[0].score == pytest.approx(predicted, abs=0.06)


@pytest.mark.parametrize(
    "form, predicted", [("power", 25.74), ("power+E", 25.74), ("params+tokens", 21.10), ("surface", 19.90)]
)
def test_xl2_from_smaller_sizes_by_hubers_loss(zero, small, form, predicted):
    """Numbers of a derivative-free search of the same loss."""
    law = fit_law(small, form, loss="huber", replicates=0)
    assert law.predict(at_xl2(zero))[0].score == pytest.approx(predicted, abs=0.006)


def test_leave_one_out_errors_of_least_squares(zero):
    found = validate(zero, ("power+E", "surface"), loss="squares")
    power, surface = found.of("power+E"), found.of("surface")
    assert power.leave_one_out_median == pytest.approx(0.14, abs=0.005)
    assert power.leave_one_out_max == pytest.approx(0.43, abs=0.005)
    assert surface.leave_one_out_median == pytest.approx(0.050, abs=0.001)
    assert surface.leave_one_out_max == pytest.approx(0.124, abs=0.001)


def test_forward_validation_reports_the_error_at_xl2(validation):
    assert validation.chosen == "surface" and "S, B, L -> XL" in validation.reason
    [fold] = [one for one in validation.of("params+tokens").folds if one.fitted_on == ("S", "B", "L")]
    held = {one.cell: one for one in fold.held_out}
    assert held["XL/2"].measured == pytest.approx(19.47) and held["XL/2"].error == pytest.approx(
        22.3 / 19.47 - 1, abs=0.004
    )
    assert all(one.inside for one in fold.held_out)
    assert validation.of("power").max_error > 0.39
    assert "two cells scored at 3 training steps" in validation.of("params+images").refusals[-1].reason


def test_before_xl_was_seen_the_surface_is_chosen(small):
    assert validate(small, ("power", "power+E", "params+tokens", "surface")).chosen == "surface"


def test_blocks_rest_on_one_cell_and_say_so(published):
    found = {one.block: one for one in compare_blocks(published, replicates=200).multipliers}
    assert set(found) == {"in_context", "cross_attention", "adaln"}
    assert all(one.cells == 1 and "rests on 1 cell (XL/2)" in one.said for one in found.values())
    assert found["in_context"].score_ratio == pytest.approx(35.24 / 19.47)
    assert found["in_context"].multiplier > found["cross_attention"].multiplier > found["adaln"].multiplier > 1.5


def test_the_frontier_ends_at_the_long_run(published):
    found = frontier(published)
    cells = [(one.size, one.patch_size) for one in found.points]
    assert cells[0] == ("S", 8) and cells[-3:] == [("XL", 2)] * 3
    assert found.points[-1].score == pytest.approx(9.62)
    off = {(one.block, one.cell) for one in found.gaps if not one.on_frontier}
    assert {("adaln_zero", "XL/8"), ("adaln_zero", "B/8"), ("in_context", "XL/2")} <= off


def test_the_methods_box_names_what_a_reader_needs(zero, validation):
    box = dict(methods_box(fit_law(zero, "params+tokens", replicates=100), zero, validation).items)
    assert "one multiply-add is one flop" in box["Gflops"]
    assert "12 scores of 12 runs in 12 cells, after 400,000 steps" in box["data"]
    assert "sum of squares" in box["loss"] and "576" in box["starts"] and "100 replicates" in box["bootstrap"]
    assert "XL/2 +14.4%" in box["held-out error"] and "median" in box["leave-one-cell-out"]
    assert "arXiv:2606.20536" in box["noise"] and "position embedding is left out" in box["parameters counted"]
