"""What to expect of a cell: published points, lines between them by hand, bands, and where nothing is known."""

import json
import math

import pytest

from analysis.expect import EXTRAPOLATED, INTERPOLATED, NOTHING, READ, expect
from dit.cli import main
from dit.errors import UserError


def of(metric, *cell, **more):
    return next(one for one in expect(*cell, **more) if one.metric == metric)


def test_a_published_score_is_read_with_the_band_of_one_more_implementation():
    found = of("fid", "adaln_zero", "L", 4, 400_000)
    assert (found.expected, found.how, found.source) == (pytest.approx(45.64), READ, "paper")
    assert found.high / found.expected == pytest.approx(math.exp(1.96 * 0.05 * math.sqrt(2)))
    two = of("fid", "adaln_zero", "B", 4, 400_000)  # the released code printed two seeds: one implementation
    assert two.expected == pytest.approx(math.sqrt(68.38 * math.sqrt(68.9 * 68.3)))
    assert two.high / two.expected == pytest.approx(math.exp(1.96 * 0.05 * math.sqrt(1.5)))


def test_between_published_steps_there_is_a_line_in_logarithms():
    step = round(math.sqrt(400_000 * 800_000))
    digitised = math.sqrt(20.42 * 14.69)
    share = math.log(step / 400_000) / math.log(2_352_000 / 400_000)
    paper = 19.47 ** (1 - share) * 10.67**share
    found = of("fid", "adaln_zero", "XL", 2, step)
    assert (found.how, found.expected) == (INTERPOLATED, pytest.approx(math.sqrt(digitised * paper), rel=1e-5))


def test_outside_the_published_steps_it_says_that_it_extrapolates_or_knows_nothing():
    found = of("fid", "adaln_zero", "B", 2, 50_000)
    base, slope = math.sqrt(43.47 * 42.84), math.log(14.69 / 20.42) / math.log(2)
    assert (found.how, found.expected) == (EXTRAPOLATED, pytest.approx(base * 8**-slope, rel=1e-6))
    assert base < found.low and "XL/2's slope" in found.said
    nearer = of("fid", "adaln_zero", "B", 2, 300_000)
    assert nearer.high / nearer.low < found.high / found.low
    far = of("fid", "adaln_zero", "B", 2, 30_000)
    assert (far.how, far.expected) == (NOTHING, None) and "400,000" in far.said


def test_the_loss_of_a_dit_is_that_of_the_dico_of_its_fid():
    f = math.log(math.sqrt(43.47 * 42.84))
    small, large = (math.log(49.97), 0.15924), (math.log(27.20), 0.15520)
    by_hand = large[1] + (small[1] - large[1]) * (f - large[0]) / (small[0] - large[0])
    found = of("training_loss", "adaln_zero", "B", 2, 50_000)
    assert (found.how, found.expected) == (INTERPOLATED, pytest.approx(by_hand, rel=1e-6))
    assert found.high / found.expected == pytest.approx(math.exp(0.015))
    assert 1.01 < found.expected / 0.15520 < 1.03  # above the DiCo of its name
    far = of("training_loss", "adaln_zero", "S", 4, 50_000)
    assert far.how == EXTRAPOLATED and far.high / far.expected > 1.03
    falling = [
        of("training_loss", "adaln_zero", "XL", 2, step).expected for step in (5_000, 70_000, 400_000, 3_000_000)
    ]
    assert falling == sorted(falling, reverse=True)


def test_what_was_told_or_logged_of_a_cell_itself_goes_first():
    assert of("training_loss", "adaln_zero", "S", 8, 100_000).expected == pytest.approx(0.17)
    assert of("training_loss", "dico", "B", 2, 50_000).expected == pytest.approx(0.15520)
    assert "thread" not in of("training_loss", "adaln_zero", "S", 8, 400_000).said


def test_what_nobody_published_has_no_number(capsys):
    for one in expect("cross_attention", "B", 2, 400_000):
        assert (one.how, one.expected, one.low) == (NOTHING, None, None) and "XL/2" in one.said
    assert main(["expect", "--size", "B", "--patch-size", "2", "--step", "100", "--json"]) == 0
    assert [row["expected"] for row in json.loads(capsys.readouterr().out)] == [None, None]


@pytest.mark.parametrize("arguments", [["--block", "wide", "--step", "5"], ["--step", "0"]])
def test_bad_input_is_one_line(arguments, capsys):
    assert main(["expect", "--size", "B", "--patch-size", "2", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "expected" in err
    with pytest.raises(UserError):
        expect("adaln_zero", "B", 2, -1)
