"""The `dit` command: help for every verb, bad input in one line with exit code 2, and JSON with nothing around it."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_study import cells, write_run, write_study

from dit.cli import MODULES, VERBS, main
from dit.design.rows import columns
from dit.errors import UserError
from dit.store.lease import Observer, claim, run_files
from dit.store.study import RUNNING, RunStore, Study, save_study, write_json

RUNS = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4,), sampling=(), steps=100)
PRESENT = [verb for verb in VERBS if importlib.util.find_spec(f"dit.cli.{MODULES.get(verb, verb)}")]

STUDY = '''"""What for?"""
from dit.design.config import DATASETS, ModelConfig, RunConfig, model_config
D = DATASETS["digits"]
def cell(block="adaln", size="S", patch=4):
    return RunConfig(model_config(block, size, patch, D, ladder="nano"), D, 10, 8)
def runs():
    return [{}]
'''


def run(*arguments):
    """Exit code of `dit` in this process."""
    try:
        return main(list(arguments))
    except SystemExit as error:
        return error.code


def files(folder):
    found = (
        path for path in folder.rglob("*") if path.name != ".lock" and "cache" not in path.relative_to(folder).parts
    )
    return {path: path.stat().st_mtime_ns if path.is_file() else None for path in found}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(here, capsys):
    """Check that a command is refused in one line, prints and writes nothing; gives the line."""

    def check(*arguments):
        before = files(here)
        assert run(*arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert err.startswith(f"dit {arguments[0]}: ")
        assert files(here) == before
        return err

    return check


@pytest.fixture
def study(here):
    """Write a study file whose cell is the given expression."""

    def write(expression, name="mine.py"):
        (here / name).write_text(STUDY.replace("{}", expression))
        return name

    return write


def test_help_names_every_verb(capsys):
    assert run("--help") == run("-h") == 0
    out, err = capsys.readouterr()
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert err == ""
    assert run() == 2
    assert capsys.readouterr().out.startswith("usage: dit VERB")


def test_the_version_is_the_packages(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == "dit 0.1.0\n"


@pytest.mark.parametrize("verb", PRESENT)
def test_every_verb_has_help(verb, capsys):
    assert run(verb, "--help") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: dit {verb} ")
    assert err == ""


def test_an_unknown_verb_is_refused_with_the_ones_there_are(here, capsys):
    assert run("swep", "demo") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("dit: unknown verb 'swep'; expected one of flops, plan, sweep, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], "arguments are required: study"),
        (["sweep"], "arguments are required: study"),
        (["status"], "arguments are required: DIR"),
        (["plan", "demo", "--colour"], "unrecognized arguments: --colour"),
        (["plan", "demo", "--format", "xml"], "invalid choice: 'xml'"),
        (["sweep", "demo", "--workers", "two"], "invalid int value: 'two'"),
        (["sweep", "demo", "--workers", "0"], "--workers 0: expected a positive whole number"),
        (["sweep", "demo", "--log-every", "-1"], "--log-every -1: expected a positive whole number"),
        (["sweep", "demo", "--checkpoint-every", "0"], "--checkpoint-every 0: expected a positive"),
        (
            ["sweep", "demo", "--accumulate", "7"],
            "does not divide over data=1 x fsdp=1 in 7 accumulated parts: expected a",
        ),
        (["sweep", "demo", "--mesh", "data=5"], "does not divide over data=5 x fsdp=1: expected a multiple of 5"),
        (
            ["sweep", "demo", "--mesh", "data=4,speed=2"],
            "expected sizes of data, fsdp and tensor, such as data=4,fsdp=2",
        ),
        (["sweep", "demo", "--wandb", "on"], "invalid choice: 'on'"),
        (["plan", "dmo"], "unknown study 'dmo': expected one of"),
        (["sweep", "dmo"], "unknown study 'dmo': expected one of"),
        (["plan", "nowhere.py"], "no study file at nowhere.py"),
        (["plan", "demo", "--columns", "run,speed"], "unknown column 'speed': expected one of run, study"),
        (["plan", "demo", "--sort", "fid"], "unknown column 'fid'"),
        (["plan", "demo", "--where", "size =="], "does not parse"),
        (["plan", "demo", "--where", "colour == 1"], "'colour' is not defined"),
        (["sweep", "demo", "--where", "size =="], "does not parse"),
        (["sweep", "demo", "--where", "size == 'M'"], "no cell of study 'demo' satisfies"),
        (["status", "nowhere"], "no study in nowhere"),
        (["results", "nowhere"], "no folder nowhere"),
    ],
)
def test_bad_arguments_are_refused(refused, arguments, message):
    assert message in refused(*arguments)


@pytest.mark.parametrize("verb", ["plan", "sweep"])
@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("cell(size='M')", "unknown size 'M': expected one of S, B, L, XL"),
        ("cell(patch=3)", "patch_size 3 does not divide the model's input of 8: expected one of [1, 2, 4, 8]"),
        ("RunConfig(ModelConfig('adaln', 4, 2, 64, 3), D, 1)", "num_heads 3 does not divide hidden_size 64"),
        ("cell(), cell('in_context'), cell()", "two equal cells, numbers 0 and 2"),
        ("", "gave 0 cells"),
        ("cell(", "failed at line 7: SyntaxError"),
        ("1 / 0", "failed at line 7: ZeroDivisionError"),
    ],
)
def test_a_study_that_cannot_be_is_refused(refused, study, verb, expression, message):
    assert message in refused(verb, study(expression))


@pytest.mark.parametrize("verb", ["plan", "sweep"])
def test_an_unknown_block_is_refused(study, verb):
    """In a process of its own: here, the shape checks of the tests would be quicker than the product's own check."""
    command = [sys.executable, "-m", "dit", verb, study("cell(block='adaln_one')")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "unknown block 'adaln_one': expected one of in_context, cross_attention, adaln, adaln_zero" in done.stderr


def test_a_folder_of_another_study_is_refused(refused, study, here):
    save_study(here / "runs", Study("other", "", RUNS))
    assert "holds study 'other', not 'mine': choose another --out" in refused("sweep", study("cell()"), "--out", "runs")


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_an_output_path_that_is_a_file_is_refused(refused, study, here, out):
    (here / "taken").write_text("mine")
    assert "taken is a file: expected a folder" in refused("sweep", study("cell()"), "--out", out)


def test_runs_without_their_study_are_refused(refused, study, here):
    write_run(here / "out", "demo", RUNS[0], images=False)
    assert "has runs but no study.json" in refused("sweep", study("cell()"), "--out", "out")


@pytest.mark.parametrize("verb", ["status", "results", "sweep"])
def test_a_newer_schema_is_refused(refused, study, here, verb):
    write_json(here / "out" / "study.json", {"schema_version": 2, "study": "mine"})
    arguments = [study("cell()"), "--out", "out"] if verb == "sweep" else ["out"]
    assert "schema version 2, this version reads up to 1: upgrade dit-scaling" in refused(verb, *arguments)


@pytest.mark.parametrize("verb", ["status", "results", "figures"])
def test_an_empty_folder_is_refused(refused, here, verb):
    (here / "empty").mkdir()
    assert "no study in empty" in refused(verb, "empty")


def test_a_damaged_record_is_refused(refused, here):
    write_study(here / "out", RUNS)
    (RunStore(here / "out", RUNS[0]).path / "status.json").write_text("{")
    assert "status.json is not readable as JSON" in refused("status", "out")


def rows_of(capsys, *arguments):
    assert run(*arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_the_plan_as_json_has_the_documented_columns(here, capsys):
    rows = rows_of(capsys, "plan", "grid", "--json")
    assert len(rows) == 48
    measured = {"sampling_steps", "nfe", "sampling_gflops", "cfg_scale", "num_samples", "protocol", "citation"}
    assert list(rows[0]) == [name for name in columns([]) if name not in measured]
    assert {row["status"] for row in rows} == {"planned"}
    assert os.listdir(here) == []


def test_a_plan_is_filtered_sorted_and_cut_to_columns(capsys):
    query = ["--where", "size == 'XL' and patch_size == 2", "--columns", "block, gflops", "--sort", "gflops"]
    rows = rows_of(capsys, "plan", "grid", *query, "--json")
    assert [list(row) for row in rows] == [["block", "gflops"]] * 4
    assert [row["gflops"] for row in rows] == sorted(row["gflops"] for row in rows)
    assert rows_of(capsys, "plan", "grid", *query, "--descending", "--format", "json") == rows[::-1]
    assert len(rows_of(capsys, "plan", "grid", "--sort", "reason", "--json")) == 48


def test_a_plan_prints_its_bill_on_standard_error(capsys):
    assert run("plan", "paper") == 0
    out, err = capsys.readouterr()
    assert "train_gflops" in out
    assert err.startswith("15 cells: 2.070e+11 Gflops of training")
    assert err.count("\n") == 1


@pytest.fixture
def under_way(here):
    """A study of four cells: one done, one failed, one held by this process, and one planned."""
    runs = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4, 2), sampling=(), steps=100)
    save_study(here / "out", Study("demo", "", runs))
    write_run(here / "out", "demo", runs[0], images=False)
    write_run(here / "out", "demo", runs[1], failed="the loss is gone", images=False)
    record = RunStore(here / "out", runs[2])
    record.set_status(RUNNING, step=25, attempt=1, loss=0.5)
    with claim(run_files(record.path), runs[2].run, Observer()):
        yield runs


def test_the_status_as_json_has_the_documented_columns(under_way, capsys):
    rows = rows_of(capsys, "status", "out", "--json")
    assert [row["run"] for row in rows] == [run.run for run in under_way]
    assert [row["status"] for row in rows] == ["done", "failed", "running", "planned"]
    assert [row["step"] for row in rows] == [100, 50, 25, 0]
    assert [row["loss"] for row in rows] == [None, None, 0.5, None]
    assert [row["images_seen"] for row in rows] == [6400, 3200, 1600, 0]
    assert rows[2]["train_gflops"] == pytest.approx(3 * 1600 * rows[2]["gflops"], rel=1e-12)
    assert rows[1]["reason"] == "the loss is gone"
    more = {"loss", "steps", "images_per_s", "left_s", "attempts", "worker", "engine", "silent_s", "stale", "time"}
    more |= {"goodput", "productive_s", "wall_s"}
    assert set(rows[0]) - set(columns(["fd_digits"])) == more
    scores = [
        (value.get("scores") or value["row"])["fd_digits"]
        for value in RunStore(Path("out"), under_way[0]).evaluations()
    ]
    assert rows[0]["fd_digits"] == min(scores)
    assert rows[3]["fd_digits"] is None


def test_a_cell_that_misses_a_score_is_not_done(under_way, capsys):
    first = RunStore(Path("out"), under_way[0])
    first.evaluation_path(under_way[0].evaluations[0]).unlink()
    assert rows_of(capsys, "status", "out", "--json")[0]["status"] == "planned"


def test_the_status_for_reading_counts_the_states(under_way, capsys):
    assert run("status", "out") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-2:] == [
        "1 of 4 done, 1 planned, 1 running, 1 failed, time left unknown",
        f"last failure: {under_way[1].run} at step 50: the loss is gone",
    ]
    assert "25/100" in out
    assert err == ""


def test_the_results_as_json_have_the_documented_columns(under_way, capsys):
    rows = rows_of(capsys, "results", "out", "--json")
    assert list(rows[0]) == columns(["fd_digits"])
    assert [row["status"] for row in rows].count("failed") == 1


def test_results_that_are_not_there_yet_are_refused(refused, here):
    save_study(here / "out", Study("demo", "", RUNS))
    assert "no results in out: none of its 2 runs has a score yet" in refused("results", "out")


def test_a_reader_that_closes_the_pipe_is_no_error(monkeypatch):
    from dit.cli import plan

    def closed(_):
        raise BrokenPipeError

    monkeypatch.setattr(plan, "run", closed)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        assert run("plan", "demo") == 0


def test_options_for_devices_become_the_runs_arguments():
    import argparse

    from dit.design.config import RunArguments
    from sweeps import arguments

    parser = argparse.ArgumentParser()
    arguments.declare(parser)
    line = "--mesh data=4,fsdp=2 --remat dots --accumulate 2 --steps-per-dispatch 5"
    given = arguments.given(parser.parse_args(line.split()))
    assert given == RunArguments(mesh="data=4,fsdp=2", remat="dots", accumulate=2, steps_per_dispatch=5)
    assert arguments.given(parser.parse_args([]), given) == given
    for wrong, message in (("--mesh model=2", "mesh 'model=2'"), ("--accumulate 0", "accumulate is 0")):
        with pytest.raises(UserError, match=message):
            arguments.given(parser.parse_args(wrong.split()))
