"""SQL over a study: the same numbers as the frames, and nothing but a question gets through."""

import builtins
import json

import pytest
from synthetic_study import cells, write_study

from analysis.results import collect, losses
from dit.cli import main

pytest.importorskip("duckdb")

from analysis.sql import query

RUNS = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4, 2), sampling=())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "demo", RUNS, failed={3: "stopped"})


def test_the_three_tables_hold_what_the_frames_hold(folder):
    [row], columns = query(folder, "select count(*) n, min(fd_digits) best from results")
    table = collect(folder).table
    assert columns == ["n", "best"]
    assert row == {"n": len(table), "best": table["fd_digits"].min()}
    rows, _ = query(folder, "select size, avg(loss) as loss from losses group by size")
    assert {row["size"]: row["loss"] for row in rows} == pytest.approx(
        losses(folder).groupby("size")["loss"].mean().to_dict()
    )
    rows, _ = query(folder, "select run, state, step, steps, reason, hash from RUNS where reason is not null")
    [failed] = rows
    assert failed == {
        **{"run": RUNS[3].run, "state": "failed", "step": 500, "steps": 1000, "reason": "stopped", "hash": RUNS[3].hash}
    }


def test_tables_join(folder):
    rows, _ = query(
        folder, "select r.run, count(*) n from runs r join losses l using (run) group by all order by n, r.run"
    )
    assert [row["n"] for row in rows] == [50, 100, 100, 100]


def test_values_become_plain_and_names_stay_apart(folder):
    rows, columns = query(folder, "select 0.5 a, 1 a, [1, 2] l, date '2026-01-02' d, null z, sum(seed) s from results")
    assert columns == ["a", "a_1", "l", "d", "z", "s"]
    assert rows == [{"a": 0.5, "a_1": 1, "l": "[1, 2]", "d": "2026-01-02", "z": None, "s": 0}]


@pytest.mark.parametrize(
    "text",
    [
        "selec", "", "select nothing from results", "select 1; select 2", "select * from elsewhere",
        "create table t as select 1", "insert into results values (1)", "drop table results", "attach 'FILE.db'",
        "copy results to 'FILE.csv'", "set enable_external_access = true", "pragma database_list", "install httpfs",
        "select * from read_csv('/etc/passwd')", "select * from '/etc/passwd'", "select * from glob('/etc/*')",
        "select content from read_text('/etc/passwd')", "select * from folder", "explain analyze select 1",
        "select * from read_parquet('http://localhost/x.parquet')", "export database 'FILE'",
    ],
)  # fmt: skip
def test_anything_but_one_query_over_the_tables_is_one_line_and_exit_code_2(folder, tmp_path, capsys, text):
    assert main(["sql", str(folder), text.replace("FILE", str(tmp_path / "x"))]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("dit sql: ")
    assert list(tmp_path.iterdir()) == []


def test_published_numbers_can_be_asked_too(capsys):
    assert main(["sql", "paper", "select max(fid) as worst from results where source = 'paper'", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"worst": 153.6}]
    assert main(["sql", "paper", "select * from losses"]) == 2
    assert "'paper' has no table losses" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "arguments", "message"),
    [
        ("duckdb", ["sql", "DIR", "select 1"], "dit sql: SQL needs DuckDB: pip install 'dit-scaling[sql]'\n"),
        ("pyarrow", ["results", "DIR", "--out", "OUT/a.parquet"], "dit results: parquet needs PyArrow: pip install "),
    ],
)
def test_without_the_extra_it_is_named(folder, tmp_path, monkeypatch, capsys, package, arguments, message):
    present = builtins.__import__

    def absent(name, scope=None, *more, **named):
        ours = (scope or {}).get("__name__", "").startswith("analysis.")  # pandas may have begun to use it already
        if ours and name.split(".")[0] == package:
            raise ImportError(name)
        return present(name, scope, *more, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert main([one.replace("DIR", str(folder)).replace("OUT", str(tmp_path)) for one in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert list(tmp_path.iterdir()) == []
