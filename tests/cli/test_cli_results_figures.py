"""`dit results` and `dit figures` from the command line: what goes to which stream, and bad input."""

import json
import subprocess
import sys

import pytest
from synthetic_study import cells, write_study

from dit.cli import main

RUNS = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4, 2), sampling=())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_study(tmp_path_factory.mktemp("study") / "demo", RUNS, failed={3: "stopped"}))


def test_a_query_filters_sorts_and_chooses_columns(folder, capsys):
    arguments = [
        "--where",
        "step == 1000 and patch_size == 4",
        "--sort",
        "fd_digits",
        "--columns",
        "size,fd_digits",
        "--json",
    ]
    assert main(["results", folder, *arguments]) == 0
    out, err = capsys.readouterr()
    table = json.loads(out)
    assert [row["size"] for row in table] == ["B", "S"]
    assert list(table[0]) == ["size", "fd_digits"]
    assert "floor" in err
    assert main(["results", folder, *arguments, "--descending"]) == 0
    assert json.loads(capsys.readouterr().out) == table[::-1]


def test_a_ranking_across_protocols_is_remarked_on(tmp_path, capsys):
    runs = cells(blocks=("adaln_zero",), sizes=("S",), patches=(4,), sampling=(8,))
    folder = str(write_study(tmp_path / "demo", runs))
    assert main(["results", folder, "--sort", "fd_digits"]) == 0
    assert "scores under 2 protocols do not rank against each other" in capsys.readouterr().err
    assert main(["results", folder, "--sort", "fd_digits", "--where", "sampling_steps == 8"]) == 0
    assert "rank" not in capsys.readouterr().err


def test_json_is_every_column_with_null_where_a_failed_run_has_no_score(folder, capsys):
    assert main(["results", folder, "--json"]) == 0
    failed = [row for row in json.loads(capsys.readouterr().out) if row["status"] == "failed"]
    assert len(failed) == 1
    assert failed[0]["fd_digits"] is None
    assert failed[0]["reason"] == "stopped"


@pytest.mark.parametrize("style", ["table", "csv", "markdown", "latex"])
def test_every_format_prints(folder, capsys, style):
    assert main(["results", folder, "--format", style]) == 0
    assert "fd" in capsys.readouterr().out


def test_no_match_prints_the_header_and_says_so(folder, capsys):
    assert main(["results", folder, "--where", "size == 'XL'"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("block")
    assert "no row of" in err


def test_the_published_table_prints(capsys):
    assert main(["results", "paper", "--where", "step == 7000000", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert {row["citation"].split()[-1] for row in table} == {"2", "4", "5"}
    assert main(["results", "baselines"]) == 0
    assert "LDM-4-G" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results", "DIR", "--where", "size =="], "does not parse"),
        (["results", "DIR", "--where", "colour == 1"], "'colour' is not defined"),
        (["results", "DIR", "--sort", "fid"], "unknown column 'fid'"),
        (["results", "DIR", "--columns", "run,speed"], "unknown column 'speed'"),
        (["results", "nowhere"], "no folder nowhere"),
        (["figures", "nowhere"], "no folder nowhere"),
        (["figures", "DIR", "--only", "fig99"], "unknown figure 'fig99'"),
        (["figures", "DIR", "--out", "DIR/study.json"], "study.json is a file"),
        (["figures", "DIR", "--where", "size"], "true or false"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, arguments, message):
    assert main([argument.replace("DIR", folder) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_figures_go_into_the_studys_folder_and_skipped_ones_to_standard_error(folder, capsys):
    assert main(["figures", folder, "--only", "fig8,fig10"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [f"{folder}/figures/fig8.{kind}" for kind in ("pdf", "png", "json")]
    assert err.startswith("fig10 skipped: no model is on record")


def test_neither_jax_nor_for_listing_pandas_is_imported():
    code = (
        "import sys, analysis, analysis.published, dit.cli.flops, dit.cli.results, dit.cli.figures; "
        "assert not {'pandas', 'matplotlib', 'jax'} & set(sys.modules); "
        "import analysis.figures.registry; assert 'jax' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_over_seeds_and_into_files_of_every_kind(folder, tmp_path, capsys):
    chosen = ["results", folder, "--over-seeds", "--where", "step == 1000", "--sort", "fd_digits"]
    for suffix in (".csv", ".json", ".md", ".tex", ".txt"):
        path = tmp_path / f"table{suffix}"
        assert main([*chosen, "--out", str(path)]) == 0
        assert capsys.readouterr().out == ""
        assert "fd_digits" in path.read_text().replace("\\_", "_")
    table = json.loads((tmp_path / "table.json").read_text())
    assert [(row["n"], row["fd_digits_sd"]) for row in table] == [(1, None)] * 3
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".json", ".md", ".tex", ".txt"}


def test_parquet_holds_every_column_at_full_precision(folder, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "table.parquet"
    assert main(["results", folder, "--out", str(path)]) == 0
    assert main(["results", folder, "--json"]) == 0
    assert parquet.read_table(path).to_pylist() == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "parquet"], "parquet is no text: name the file with --out FILE"),
        (["--out", "table.xls"], "--out table.xls: expected a name ending in .csv"),
        (["--out", "DIR", "--format", "csv"], "is a folder: expected a file"),
        (["--out", "DIR/none/table.csv"], "cannot be written: No such file or directory"),
        (["--over-seeds", "--sort", "run"], "unknown column 'run'"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(folder, capsys, arguments, message):
    assert main(["results", folder, *(argument.replace("DIR", folder) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
