"""Filtering, sorting and choosing columns, over frames and over the rows of a plan."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis import query
from analysis.frames import frame
from analysis.tables import CONVENTION, plain, render
from dit.errors import UserError

ROWS = [
    {"run": "a", "block": "adaln", "size": "S", "patch_size": 2, "seed": 0, "gflops": 0.1 + 0.2, "fd_digits": 3.0},
    {"run": "b", "block": "adaln_zero", "size": "B", "patch_size": 4, "seed": 0, "gflops": 2.0, "fd_digits": None},
    {"run": "c", "block": "adaln_zero", "size": "XL", "patch_size": 2, "seed": None, "gflops": 1.0, "fd_digits": 1.5},
]
COLUMNS = list(ROWS[0])


@pytest.mark.parametrize(
    ("expression", "runs"),
    [
        ("block == 'adaln_zero' and patch_size == 2", "c"),
        ("size in ['S', 'B']", "ab"),
        ("fd_digits < 2", "c"),
        ("gflops > 0.5 or size == 'S'", "abc"),
        ("seed == 0", "ab"),
        ("block.str.startswith('ada') and not patch_size == 4", "ac"),
        ("size == 'M'", ""),
    ],
)
def test_an_expression_selects_rows(expression, runs):
    assert "".join(row["run"] for row in query.select(ROWS, expression)) == runs
    assert "".join(query.filter_rows(frame(ROWS), expression)["run"]) == runs


def test_selected_rows_of_a_plan_are_the_same_objects():
    assert query.select(ROWS, "run == 'b'")[0] is ROWS[1]
    assert query.select([], "run == 'b'") == []


@pytest.mark.parametrize(
    "expression",
    ["size ==", "(", "", "size == 'S' if", "colour == 'red'", "patch_size", "1", "True", "patch_size = 2", "@ROWS", "run == @expression",
     "size > 2",
     "gflops.nothing == 1", "[1]", "lambda row: True", "print(size)", "size == 'S'\nseed == 0", "gflops.max() > 0", "1/0 > 1"],
)  # fmt: skip
def test_a_bad_expression_is_one_line_that_names_it_and_the_columns(expression):
    with pytest.raises(UserError) as error:
        query.select(ROWS, expression)
    assert "\n" not in str(error.value)
    assert "--where" in str(error.value)
    assert "patch_size, seed" in str(error.value)


def test_names_outside_the_table_are_out_of_reach():
    with pytest.raises(UserError, match="has an '@'"):
        query.filter_rows(frame(ROWS), "run == @expression")


def test_sorting_puts_gaps_last_both_ways():
    table = frame(ROWS)
    assert "".join(query.sort(table, "fd_digits")["run"]) == "cab"
    assert "".join(query.sort(table, "fd_digits", descending=True)["run"]) == "acb"
    with pytest.raises(UserError, match="unknown column 'fid': expected one of run, block"):
        query.sort(table, "fid")


def test_whole_numbers_stay_whole_where_some_are_missing():
    assert frame(ROWS)["seed"].tolist()[:2] == [0, 0]
    assert str(frame(ROWS)["seed"].dtype) == "Int64"


def test_json_has_full_precision_and_null_for_gaps():
    back = json.loads(render(frame(ROWS).to_dict("records"), COLUMNS, "json"))
    assert back == ROWS
    assert list(back[0]) == COLUMNS


def test_numbers_of_other_libraries_become_pythons():
    assert plain(pd.NA) is None
    assert plain(float("inf")) is None
    assert type(plain(np.int64(3))) is int
    assert type(plain(np.float32(0.5))) is float


def test_csv_has_full_precision_and_empty_gaps():
    lines = render(frame(ROWS).to_dict("records"), ["run", "seed", "gflops", "fd_digits"], "csv").splitlines()
    assert lines == ["run,seed,gflops,fd_digits", "a,0,0.30000000000000004,3.0", "b,0,2.0,", "c,,1.0,1.5"]


@pytest.mark.parametrize("style", ["table", "markdown", "latex"])
def test_formats_for_reading_say_the_convention(style):
    text = render(ROWS, COLUMNS, style)
    assert CONVENTION in text
    assert CONVENTION not in render(ROWS, ["run", "fd_digits"], style)
    assert "nan" not in text.lower().replace("none", "")


def test_latex_escapes_underscores():
    assert "adaln\\_zero" in render(ROWS, COLUMNS, "latex")


def test_an_empty_table_keeps_its_header():
    assert render([], ["run", "size"], "table").split()[:2] == ["run", "size"]
    assert render([], ["run"], "json") == "[]\n"


def test_an_unknown_format_is_an_error():
    with pytest.raises(UserError, match="unknown format 'xml': expected one of table, csv"):
        render(ROWS, COLUMNS, "xml")
