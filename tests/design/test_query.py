"""Filtering, sorting and choosing columns, over frames and over the rows of a plan."""

import json
import re
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.frames import frame
from analysis.tables import CONVENTION, plain, render
from dit.design import query
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
        ("block in ['adaln', 'adaln_zero'] and not patch_size == 4", "ac"),
        ("size == 'M'", ""),
        ("size != 'S' & ~(patch_size == 4) | run == \"a\"", "ac"),
        ("0.5 < gflops <= 1", "c"),
        ("`patch_size` * 2 - 1 == 3 and -gflops // 1 >= -1", "ac"),
        ("size not in ('S', 'XL')", "b"),
        ("size == ['S', 'XL']", "ac"),
        ("fd_digits == None", "b"),
        ("not fd_digits < 2", "ab"),
        ("not seed == 0", ""),
        ("not not seed == 0", "ab"),
        ("fd_digits != 3", "bc"),
        ("seed != 1", "ab"),
        ("gflops / seed > 1e300", "ab"),
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
     "gflops.nothing == 1", "[1]", "lambda row: True", "print(size)", "size == 'S'\nseed == 0", "gflops.max() > 0", "1/0 > 1",
     "size['a'] == 1", "f'{size}' == 'S'", "[size for size in run]",
     "gflops ** 9 ** 9 ** 9 > 1", "size * 1000000000 == 'S'", "size == 'S' ; 1",
     "__import__('os').system('x') == 0", "size := 'S'", "size in size", "size in [size]",
     "gflops and size == 'S'", "(" * 500 + "size == 'S'",
     "gflops" + "*9e9" * 9 + " * 1" + "*99999999999999" * 90 + " > patch_size" + "*99999999999999" * 90,
     "size == 'S'" + " " * 10000, "size == '", "1 < None < gflops"],
)  # fmt: skip
def test_a_bad_expression_is_one_line_that_names_it_and_the_columns(expression):
    with pytest.raises(UserError) as error:
        query.select(ROWS, expression)
    assert "\n" not in str(error.value)
    assert "--where" in str(error.value)
    assert "patch_size, seed" in str(error.value)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("size = 'S'", "character 6: '=' does not belong here (use == to compare)"),
        ("szie == 'S'", "character 1: name 'szie' is not defined (did you mean 'size'?)"),
        (
            "gflops.max() > 0",
            "character 7: '.' does not belong here (attributes and calls are not part of this language",
        ),
        ("size == 'S' and len(run) > 1", "character 20: a call is not part of this language"),
        ("size == 'S' AND seed == 0", "character 13: 'AND' does not belong here (did you mean 'and'?)"),
        ("seed == 0 and size > 2", "character 20: text is compared with a number ('S' with 2)"),
        ("seed is None", "use == or !="),
    ],
)
def test_an_error_names_the_place_and_what_to_do(expression, said):
    with pytest.raises(UserError, match=re.escape(said)):
        query.select(ROWS, expression)


WORDS = st.sampled_from(
    [
        *COLUMNS,
        *re.split(
            " ",
            "and or not in == != < >= ( ) [ ] , + - * / // % ** & | ~ 'S' 'adaln' 2 0 1e999 None True `size` ` ' = . @ \\",
        ),
        *("lambda", "x", ":", "9" * 400, "\0", "\n", "é", "__class__", "os", "f'{size}'", "eval", "exit"),
    ]
)


@settings(max_examples=3000, deadline=timedelta(seconds=1), database=None, derandomize=True)
@given(
    st.one_of(
        st.lists(WORDS, max_size=14).map(" ".join), st.lists(WORDS, max_size=8).map("".join), st.text(max_size=40)
    )
)
def test_no_text_gives_more_than_rows_or_one_line(expression):
    try:
        chosen = query.select(ROWS, expression)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(row in ROWS for row in chosen)


COMPARED = st.builds(
    "{} {} {}".format,
    st.sampled_from(["patch_size", "seed", "gflops", "fd_digits", "patch_size * 2 + 1", "-gflops", "fd_digits / gflops"]),
    st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    st.sampled_from(["0", "1.5", "2", "3.0", "gflops", "-1"]),
) | st.sampled_from(["size == 'S'", "block != 'adaln'", "size in ['S', 'B']", "patch_size not in [4]", "1 < gflops <= 2"])  # fmt: skip
TRUTHS = st.recursive(
    COMPARED,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or", "&", "|"]), inner)
        | st.builds("not ({})".format, inner)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(TRUTHS)
def test_rows_are_those_that_pandas_chooses(expression):
    mask = frame(ROWS).eval(expression, engine="python")
    expected = frame(ROWS)["run"][mask.astype("boolean").fillna(False)]
    assert [row["run"] for row in query.select(ROWS, expression)] == list(expected)


def test_names_outside_the_table_are_out_of_reach():
    with pytest.raises(UserError, match="'@' does not belong here"):
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
