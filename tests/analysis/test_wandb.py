"""Studies to and from Weights & Biases: a real offline replay read by its file format, a fake API, and exported files."""

import csv
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import pandas as pd
import pytest
from synthetic_study import cells, write_study
from wandb_records import OfflineRun, offline_run

from analysis.results import collect, losses
from analysis.wandb_import import Fields, import_runs
from analysis.wandb_sources import read_project
from dit.cli import main
from dit.design.config import DATASETS, OptimConfig, RunConfig, model_config
from dit.errors import UserError

RUNS = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4,), sampling=(8,), steps=200)
COLUMNS = [
    "run",
    "step",
    "train_gflops",
    "sampling_steps",
    "nfe",
    "sampling_gflops",
    "cfg_scale",
    "num_samples",
    "fd_digits",
    "protocol",
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "demo", RUNS, failed={1: "stopped"})


@pytest.fixture(scope="module")
def replayed(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("replayed")
    assert main(["export", "wandb", str(study), "--out", str(folder)]) == 0
    return [offline_run(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


@dataclass
class FakeApi:
    """wandb's API over given runs."""

    found: list[OfflineRun]
    asked: list[str] = field(default_factory=list)

    def runs(self, path):
        self.asked.append(path)
        return self.found


def test_a_replay_holds_every_row_under_the_runs_hash_with_compute_as_the_scores_axis(study, replayed):
    by_id = {run.id: run for run in replayed}
    assert set(by_id) == {run.hash for run in RUNS}
    curves, table = losses(study), collect(study).table
    for run in RUNS:
        mirror = by_id[run.hash]
        assert (mirror.name, mirror.group, mirror.project) == (run.run, "demo", "dit-scaling")
        assert mirror.axes == {"*": "step", "fd_digits": "train_gflops"}
        assert mirror.config["model"]["depth"] == run.model.depth
        logged = {row["step"]: row["loss"] for row in mirror.rows if "loss" in row}
        assert logged == dict(curves[curves["run"] == run.run][["step", "loss"]].itertuples(index=False))
        scores = table[(table["run"] == run.run) & (table["status"] == "done")]
        assert sorted(row["fd_digits"] for row in mirror.rows if "fd_digits" in row) == sorted(scores["fd_digits"])
        assert [row["step"] for row in mirror.rows] == sorted(row["step"] for row in mirror.rows)
    assert [by_id[run.hash].exit_code for run in RUNS] == [0, 1]


def test_a_replayed_study_comes_back_as_it_was(study, replayed, tmp_path):
    api = FakeApi(replayed)
    logged = read_project("team/dit", api)
    assert api.asked == ["team/dit"]
    import_runs(logged, Fields(), "demo", "team/dit", tmp_path / "back")
    first, second = collect(study), collect(tmp_path / "back")
    done = [one.table.query("status == 'done'").sort_values(["run", "step", "protocol"]) for one in (first, second)]
    pd.testing.assert_frame_equal(*[table[COLUMNS].reset_index(drop=True) for table in done])
    assert second.protocols == first.protocols
    assert set(done[1]["citation"]) == {f"wandb:team/dit/{run.hash}" for run in RUNS}
    keys = ["run", "step", "loss", "mse", "vb", "grad_norm", "images_per_s"]
    curves = [losses(one)[keys].sort_values(["run", "step"], ignore_index=True) for one in (study, tmp_path / "back")]
    pd.testing.assert_frame_equal(*curves, check_dtype=False)
    failed = second.table.query("status == 'failed'")
    assert failed["reason"].tolist() == ["failed in wandb"]


def test_scores_that_name_no_protocol_take_those_declared_in_order(replayed, tmp_path):
    for run in replayed:
        rows = [{name: row[name] for name in ("step", "loss", "fd_digits") if name in row} for row in run.rows]
        run = OfflineRun(**{**vars(run), "rows": rows})
        run.config = {name: value for name, value in run.config.items() if name != "protocols"}
        import_runs(read_project("a/b", FakeApi([run])), Fields(), "demo", "a/b", tmp_path / run.id)
        table = collect(tmp_path / run.id).table.query("status == 'done'")
        declared = [e for one in RUNS if one.hash == run.id for e in one.evaluations if e.step <= table["step"].max()]
        assert sorted(table["sampling_steps"]) == sorted(e.sampling_steps for e in declared)


def foreign(name="DiT-XL/2 baseline", steps=(100, 200), **config):
    """A run of somebody else's trainer."""
    rows = [{"_step": step // 100, "train/step": step, "train/loss": 0.2 - step * 1e-4, "lr": 1e-4} for step in steps]
    rows.append({"_step": 9, "train/step": steps[-1], "quality/fid": 25.5, "picture": {"_type": "image-file"}})
    return OfflineRun(
        "abc", name, config={"global_batch_size": 256, "image_size": 256, **config}, rows=rows, state="finished"
    )


STATED = {"block": "adaln_zero", "num_samples": "50000", "cfg_scale": "1.0", "decoder": "sd-vae-ft-mse"}


def test_a_foreign_run_is_mapped_by_usual_names_named_columns_and_stated_values(tmp_path):
    logged = read_project("team/dit", FakeApi([foreign(seed=7, optimizer={"lr": 3e-4})]))
    fields = Fields({"fid": "quality/fid", "learning_rate": "optimizer.lr", "speed": "lr"}, STATED)
    [run] = import_runs(logged, fields, "theirs", "team/dit", tmp_path / "theirs").runs
    data = DATASETS["imagenet256"]
    model = model_config("adaln_zero", "XL", 2, data)
    assert run == RunConfig(model, data, 200, 256, 7, optim=OptimConfig(learning_rate=3e-4))
    study = collect(tmp_path / "theirs")
    [row] = study.table.to_dict("records")
    assert (row["fid"], row["step"], row["num_samples"], row["cfg_scale"]) == (25.5, 200, 50_000, 1.0)
    assert pd.isna(row["sampling_steps"])
    protocol = study.protocols[row["protocol"]]
    assert (protocol["decoder"], protocol["sampler"], protocol["ema"]) == ("sd-vae-ft-mse", None, None)
    curve = losses(tmp_path / "theirs")
    assert curve["step"].tolist() == [100, 200]
    assert curve["loss"].tolist() == pytest.approx([0.19, 0.18])
    assert curve["speed"].tolist() == [1e-4, 1e-4]


def write_csv(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_exported_files_of_every_kind_are_read_and_merged_by_name(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    project = [("one", "finished", "S", 0), ("two", "crashed", "S", 1), ("three", "finished", "B", 0)]
    project.append(("four", "finished", "L", 0))
    header = ["Name", "State", "model", "seed"]
    write_csv(
        folder / "project.csv", header, [(run, state, f"DiT-{size}/8", seed) for run, state, size, seed in project]
    )
    chart = ["Step", "one - train/loss", "one - train/loss__MIN", "one - train/loss__MAX", "two - train/loss"]
    write_csv(folder / "chart.csv", chart, [[10, 0.5, 0.4, 0.6, ""], [20, 0.25, 0.2, 0.3, 0.75]])
    (folder / "three.jsonl").write_text(
        '{"_step": 0, "global_step": 30, "loss": 0.125}\n{"_step": 1, "global_step": 40, "loss": NaN}\n'
    )
    write_csv(folder / "four.csv", ["_step", "loss", "fid"], [[50, 0.5, ""], [60, "", 12.5]])
    whole = {"name": "five", "config": {"model": "DiT-XL/8"}, "history": [{"step": 70, "loss": 0.0625}]}
    (folder / "runs.json").write_text(json.dumps([whole]))
    out = tmp_path / "study"
    stated = ["block=adaln_zero", "dataset=imagenet256", "batch_size=256", "num_samples=10000"]
    assert main(["import-wandb", str(folder), "--out", str(out), "--set", *stated]) == 0
    curve = losses(out).sort_values(["size", "seed", "step"])
    found = [tuple(row) for row in curve[["size", "seed", "step", "loss"]].itertuples(index=False)]
    assert found == [
        *(("B", 0, 30, 0.125), ("L", 0, 50, 0.5), ("S", 0, 10, 0.5), ("S", 0, 20, 0.25)),
        *(("S", 1, 20, 0.75), ("XL", 0, 70, 0.0625)),
    ]
    table = collect(out).table
    assert table[["size", "step", "fid", "status"]].dropna().values.tolist() == [["L", 60, 12.5, "done"]]
    assert table.query("status == 'failed'")[["size", "seed", "step", "reason"]].values.tolist() == [
        ["B", 0, 40, "not finite at step 40: loss nan; logged to step 40"],
        ["S", 1, 20, "crashed in wandb"],
    ]


def test_an_imported_study_is_read_by_the_other_verbs(tmp_path, capsys, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "Api", lambda: FakeApi([foreign()]))
    out = str(tmp_path / "theirs")
    stated = [f"{name}={value}" for name, value in STATED.items()]
    assert main(["import-wandb", "team/dit", "--out", out, "--map", "fid=quality/fid", "--set", *stated]) == 0
    assert "1 run of study theirs" in capsys.readouterr().out
    for verb in (
        ["results"],
        ["status"],
        ["compare"],
        ["figures", "--only", "fig8,fig13"],
        ["sql", "select * from runs"],
    ):
        assert main([verb[0], out, *verb[1:]]) == 0, verb
        assert capsys.readouterr().out
    assert main(["compare", out, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["verdict"], row["differs"]) == ("not comparable", "step 200 and 400000")


TELLS_NO_CELL = "does not tell its block, size, patch_size, dataset, batch_size: "


@pytest.mark.parametrize(
    ("rows", "config", "options", "message"),
    [
        ([{"step": 1, "cost": 2.0}], {}, [], "no loss and no score is found: name one, as in --map loss=COLUMN"),
        ([{"step": 1, "cost": 2.0}], {"depth": 3}, ["--map", "loss=price"], "no run has it; columns: step, cost; configuration: depth"),
        ([{"step": 1, "loss": 2.0}], {"mlp": 3}, [], TELLS_NO_CELL + "give --map block=COLUMN"),
        ([{"fid": 2.0}], {}, [], "not tell its step, num_samples, block, size, patch_size"),
        ([{"cost": 2.0}], {}, [], "--map fid=COLUMN; run 'run' " + TELLS_NO_CELL),
        ([{"loss": 2.0}], {}, ["CELL"], "does not tell its step: give --map step=COLUMN where they are logged; columns: loss"),
        ([{"loss": 1.0, "step": 1}, {"loss": 2.0}], {}, ["CELL"], "a row of run 'run' has no step: give --map step=COLUMN"),
        ([{"step": 1.5, "loss": 2.0}], {}, ["CELL"], "step is 1.5, expected a whole number"),
        ([{"_step": 1, "train/step": 9, "loss": 2}, {"_step": 2, "fid": 9}], {}, ["CELL", "num_samples=9"], "has no train/step: give"),
        ([{"step": "late", "loss": 2.0}], {}, ["CELL"], "step is 'late', expected a number"),
        ([{"step": 1, "loss": 2.0}], {"lr": "cosine"}, ["CELL"], "learning_rate is 'cosine', expected a number"),
        ([{"step": 1, "fid": 2.0}], {}, ["CELL"], "give --map num_samples=COLUMN where they are logged, or --set num_samples=50000"),
        ([{"step": 1, "loss": 2.0}], {}, ["CELL", "block=mamba"], "unknown block 'mamba'"),
        ([{"step": 1, "loss": 2.0}], {"size": [1]}, ["CELL", "size=[1]"], "size is [1], expected a name"),
        ([{"step": 1, "fid": 2.0}], {"protocols": "{"}, ["CELL", "num_samples=10"], "its protocols are not JSON"),
        ([{"step": 1, "loss": 2.0}], {}, ["CELL", "dataset=cifar"], "unknown dataset 'cifar'"),
        ([{"step": 1, "loss": 2.0}], {}, ["--set", "colour=red"], "--set colour: expected one of block"),
        ([{"step": 1, "loss": 2.0}], {}, ["--map", "loss"], "--map loss: expected FIELD=..., as in --map loss=train/loss"),
        ([{"step": 1, "loss": 2.0}], {}, ["--only", "other"], "--only 'other': no run's name or id has it"),
        ([{"step": 1, "loss": 2.0}], {}, ["--only", "("], "is no regular expression"),
    ],
)  # fmt: skip
def test_what_cannot_be_mapped_is_one_line_and_leaves_nothing(tmp_path, capsys, rows, config, options, message):
    cell = ["--set", "block=adaln_zero", "size=S", "patch_size=8", "dataset=imagenet256", "batch_size=8"]
    options = [*cell, *options[1:]] if options[:1] == ["CELL"] else options
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"name": "run", "config": config, "history": rows}))
    out = tmp_path / "out"
    assert main(["import-wandb", str(path), "--out", str(out), *options]) == 2
    printed, err = capsys.readouterr()
    assert (printed, err.count("\n")) == ("", 1)
    assert message in err
    assert [one.name for one in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "a.json is not readable as an export of wandb"),
        ("a.json", "3", "expected rows or runs"),
        ("a.jsonl", "[1]\n", "expected rows or runs"),
        ("a.csv", "", "a.csv is not readable as an export"),
        ("a.txt", "x", "expected a name ending in .csv, .json, .jsonl"),
        ("a.json", "[]", "no history in"),
        ("a.json", '{"history": 5}', "history is no list of rows"),
        ("a.json", '{"history": [5]}', "history is no list of rows"),
        ("a.json", '{"history": [], "config": 4}', "config is 4"),
        ("a.csv", "x - loss\n1\n", "no column holds the step"),
    ],
)
def test_files_that_are_no_exports_are_one_line(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    assert main(["import-wandb", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_two_runs_of_one_cell_and_an_existing_folder_are_refused(tmp_path, capsys):
    twice = read_project("a/b", FakeApi([foreign("DiT-XL/2 first"), foreign("DiT-XL/2 second")]))
    with pytest.raises(
        UserError,
        match=r"first' .abc. and 'DiT-XL/2 second' .abc. of .* are both adaln_zero-XL-2-s0-.*--map seed=COLUMN",
    ):
        import_runs(twice, Fields({}, STATED), "x", "a/b", tmp_path / "out")
    assert not any(tmp_path.iterdir())
    assert main(["import-wandb", "a/b", "--out", str(tmp_path)]) == 2
    assert main(["import-wandb", "nowhere.csv", "--out", str(tmp_path / "out")]) == 2
    assert "no file nowhere.csv" in capsys.readouterr().err


def test_wandbs_own_refusal_is_one_line(tmp_path, capsys, monkeypatch):
    import wandb

    def refuse():
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in")

    monkeypatch.setattr(wandb, "Api", refuse)
    assert main(["import-wandb", "team/dit", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "wandb project team/dit cannot be read (No API key configured. Use `wandb login` to log in)" in err
    assert err.count("\n") == 1
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(runs=lambda path: []))
    assert main(["import-wandb", "team/dit", "--out", str(tmp_path / "out")]) == 2
    assert "has no runs" in capsys.readouterr().err
    assert main(["export", "wandb", "paper"]) == 2
    assert "'paper' is no study's folder" in capsys.readouterr().err
