"""`dit flops`: the published table with residuals, one cell with its components, the grid, and bad input."""

import json

import pytest

from dit.cli import main
from dit.design.config import DATASETS, model_config
from dit.design.flops import gflops, params


def rows(capsys, *arguments):
    assert main(["flops", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_published_table_has_sixteen_rows_with_small_residuals(capsys):
    table = rows(capsys)
    unets = [row for row in table if row["block"] == "unet"]
    assert len(unets) == 10
    assert all(round(row["paper_gflops"]) == row["published_gflops"] for row in unets)
    table = [row for row in table if row["block"] != "unet"]
    assert len(table) == 16
    assert all(abs(row["residual_gflops"]) < 0.01 for row in table)
    assert all(round(row["params"] / 1e6) == row["published_params_millions"] for row in table)
    assert table[-1]["tokens"] == 1024


def test_one_cell_lists_components_that_add_up(capsys):
    table = rows(capsys, "--block", "adaln_zero", "--size", "XL", "--patch-size", "2", "--image-size", "512")
    *parts, total, paper = table
    assert sum(part["macs"] for part in parts) == total["macs"] == 524_538_298_368
    assert sum(part["params"] for part in parts) == total["params"] == 674_834_720
    assert paper["gflops"] == pytest.approx(524.60, abs=0.005)


def test_the_grid_has_every_block_size_and_patch_size(capsys):
    table = rows(capsys, "--grid")
    assert len({(row["block"], row["size"], row["patch_size"]) for row in table}) == 48
    assert {row["patch_size"] for row in table} == {8, 4, 2}
    nano = rows(capsys, "--grid", "--ladder", "nano", "--dataset", "digits")
    assert {row["patch_size"] for row in nano} == {4, 2, 1}
    model = model_config("adaln", "L", 2, DATASETS["digits"], "nano")
    row = next(row for row in nano if (row["block"], row["size"], row["patch_size"]) == ("adaln", "L", 2))
    assert (row["params"], row["gflops"]) == (params(model), gflops(model))


@pytest.mark.parametrize(
    ("arguments", "macs", "parameters"),
    [
        (["adm"], 1_119_832_768_512, 553_838_086),
        (["adm", "--image-size", "64"], 109_678_018_560, 295_904_454),
        (["adm-u", "--image-size", "256"], 741_320_392_704, 607_700_364),
        (["ldm-8"], 57_038_602_240, 394_984_196),
        (["unet", "--size", "B"], 23_014_113_280, 157_281_640),
    ],
)
def test_a_u_net_lists_its_parts(capsys, arguments, macs, parameters):
    *parts, total, h1 = rows(capsys, "--family", *arguments)
    assert sum(part["macs"] for part in parts) == total["macs"] == macs
    assert total["params"] == parameters
    assert h1["component"] == "total, rule H1"
    assert h1["gflops"] > total["gflops"]


def test_the_table_for_reading_says_the_convention(capsys):
    assert main(["flops"]) == 0
    assert "one multiply-add as one flop" in capsys.readouterr().out


CELL = ["--block", "adaln", "--size", "S", "--patch-size", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--block", "adaln_one", "--size", "S", "--patch-size", "2"], "unknown block 'adaln_one'"),
        (["--block", "adaln", "--size", "M", "--patch-size", "2"], "unknown size 'M'"),
        (["--block", "adaln", "--size", "S", "--patch-size", "5"], "patch_size 5 does not divide"),
        (["--block", "adaln", "--size", "S"], "together"),
        ([*CELL, "--image-size", "250"], "250 is not a multiple of 8"),
        ([*CELL, "--ladder", "giant"], "unknown ladder 'giant'"),
        ([*CELL, "--dataset", "cats"], "unknown dataset 'cats'"),
        ([*CELL, "--dataset", "mnist", "--image-size", "256"], "leave out --image-size"),
        ([*CELL, "--grid"], "--grid counts every cell"),
        (["--grid", "--ladder", "giant"], "unknown ladder 'giant'"),
        (["--ladder", "nano"], "add --grid"),
        (["--family", "edm"], "unknown family of U-Nets 'edm'"),
        (["--family", "adm", "--image-size", "300"], "no ADM for images of 300 px was published"),
        (["--family", "adm", "--block", "adaln"], "--family names a U-Net: leave out"),
        (["--family", "unet"], "is a ladder: give its --size"),
        (["--family", "ldm-4", "--size", "S"], "leave out --size and --dataset"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(["flops", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
