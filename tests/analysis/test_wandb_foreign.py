"""Logs of other people's trainers: what each run is, which column is the step, whose configuration and counts, and what diverged."""

import json
import shutil

import pytest
from test_wandb import write_csv
from wandb_records import offline_run

from analysis.results import collect, losses
from dit.cli import main
from dit.store.study import RunStore, load_study

CELL = ("block=adaln_zero", "size=S", "patch_size=8", "dataset=imagenet256", "batch_size=256", "num_samples=50000")
TABLE = ["Name", "State", "model", "seed", "image_size", "global_batch_size"]


def imported(tmp_path, *options, stated=("block=adaln_zero", "num_samples=50000")):
    """The study that the files in `tmp_path / "in"` become; whether it was refused is `main`'s answer."""
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    code = main(["import-wandb", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--set", *stated, *options])
    return load_study(tmp_path / "out") if code == 0 else code


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def whole(folder, name, rows, config=None, **more):
    (folder / f"{name}.json").write_text(
        json.dumps({"name": "DiT-S/8", "config": config or {}, "history": rows, **more})
    )


def status_of(tmp_path, at=0):
    run = load_study(tmp_path / "out").runs[at]
    return RunStore(tmp_path / "out", run).status()


def test_runs_of_one_name_stay_apart_in_tables_lists_and_files(folder, tmp_path, capsys):
    rows = [["sweep", "finished", "DiT-B/4", seed, 256, 256, 400_000, fid] for seed, fid in ((0, 68.0), (1, 70.0))]
    write_csv(folder / "project.csv", [*TABLE, "train/step", "eval/fid"], rows)
    assert [run.seed for run in imported(tmp_path).runs] == [0, 1]
    assert collect(tmp_path / "out").table["fid"].tolist() == [68.0, 70.0]
    write_csv(folder / "chart.csv", ["Step", "sweep - eval/fid", "sweep - eval/fid"], [[2000, 80, 85]])
    assert imported(tmp_path) == 2
    assert "several runs are named 'sweep' in wandb:project.csv, chart.csv" in capsys.readouterr().err
    write_csv(folder / "project.csv", ["ID", *TABLE, "train/step", "eval/fid"], [[f"r{row[3]}", *row] for row in rows])
    (folder / "chart.csv").unlink()
    for seed in (0, 1):
        write_csv(folder / f"r{seed}.csv", ["_step", "loss"], [[5, seed + 0.5]])
    assert [run.seed for run in imported(tmp_path).runs] == [0, 1]
    assert losses(tmp_path / "out").sort_values("seed")["loss"].tolist() == [0.5, 1.5]
    for one in folder.iterdir():
        one.unlink()
    for seed in (0, 1):  # the same display name, a file each
        whole(
            folder,
            f"file{seed}",
            [{"step": 1, "loss": seed + 0.25}],
            {"seed": seed, "image_size": 256, "batch_size": 8},
        )
    assert [run.seed for run in imported(tmp_path).runs] == [0, 1]


def test_files_that_tell_a_step_differently_are_of_two_runs(folder, tmp_path, capsys):
    write_csv(folder / "a.csv", ["Step", "one - loss"], [[10, 0.5]])
    write_csv(folder / "b.csv", ["Step", "one - loss"], [[10, 0.25]])
    assert imported(tmp_path, stated=CELL) == 2
    assert "differ in loss of run 'one' at step 10: 0.5 and 0.25" in capsys.readouterr().err
    (folder / "b.csv").unlink()
    write_csv(folder / "a.csv", ["run_id", "_step", "loss"], [["x", 1, 0.5], ["y", 1, 0.25]])
    assert imported(tmp_path, "--only", "^y$", stated=CELL).runs
    assert losses(tmp_path / "out")["loss"].tolist() == [0.25]
    write_csv(folder / "a.csv", ["_step", "loss"], [[1, 0.5], [1, 0.25]])
    assert imported(tmp_path, stated=CELL) == 2
    assert "_step 1 is there 2 times" in capsys.readouterr().err


def test_a_projects_table_that_shows_the_step_is_a_row_for_each_run(folder, tmp_path):
    rows = [
        ["one", "finished", "DiT-S/8", 0, 256, 256, 400_000, 0.17],
        ["two", "crashed", "DiT-B/8", 0, 256, 256, 123_000, 0.16],
    ]
    for head in (TABLE, ["ID", *TABLE[1:]]):
        write_csv(folder / "project.csv", [*head, "_step", "train/loss"], rows)
        assert [run.model.size for run in imported(tmp_path).runs] == ["S", "B"]
        assert [(status_of(tmp_path, at)["state"], status_of(tmp_path, at)["step"]) for at in (0, 1)] == [
            ("done", 400_000),
            ("failed", 123_000),
        ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"step": 1, "global_step": 100, "loss": 2.0}], "logs step 1 beside global_step 100"),
        ([{"_step": 0, "step": 9, "loss": 2.0}, {"_step": 1, "step": 0, "loss": 1.0}], "step goes back from 9 to 0"),
        ([{"sampling_step": 1, "loss": 2.0}], "does not tell its step"),
        ([{"step": -1, "loss": 2.0}], "step is -1, expected 0 or more"),
        ([{"step": 10**400, "loss": 2.0}], "expected a number"),
    ],
)
def test_a_column_is_the_step_only_if_it_says_so(folder, tmp_path, capsys, rows, message):
    whole(folder, "run", rows)
    assert imported(tmp_path, stated=CELL) == 2
    assert message in capsys.readouterr().err


def test_lightnings_step_is_taken_before_wandbs_own(folder, tmp_path):
    whole(folder, "run", [{"_step": at, "trainer/global_step": 50 * at + 49, "train/loss": 0.5} for at in (0, 1)])
    imported(tmp_path, stated=CELL)
    assert losses(tmp_path / "out")["step"].tolist() == [49, 99]


@pytest.mark.parametrize("lead", ["Group: ", "model.size: "])
def test_a_grouped_chart_and_one_over_time_are_no_runs(folder, tmp_path, capsys, lead):
    chart = f"{lead}DiT-S/8 - train/loss"
    write_csv(folder / "chart.csv", ["Step", chart, f"{chart}__MIN", f"{chart}__MAX"], [[1000, 0.3, 0.25, 0.35]])
    assert imported(tmp_path, stated=CELL) == 2
    assert "is a group, and a mean over its runs is no run: ungroup" in capsys.readouterr().err
    write_csv(folder / "chart.csv", ["Relative Time (Wall)", "one - train/loss"], [[1000, 0.3]])
    assert imported(tmp_path, stated=CELL) == 2
    assert "is drawn over 'Relative Time (Wall)', which is no step" in capsys.readouterr().err
    write_csv(folder / "chart.csv", ["Step", "one - loss", "one - loss__MIN", "one - loss__MAX"], [[10, 0.3, 0.2, 0.4]])
    imported(tmp_path, stated=CELL)
    assert "run 'one': loss is a mean over several logged values each" in capsys.readouterr().err


HYDRA = {
    "model": {"block": "adaln_zero", "size": "B", "patch_size": 4},
    "data": {"name": "imagenet256"},
    "optim": {"lr": 3e-4},
}
SHAPE = {"depth": 12, "hidden_size": 768, "num_heads": 12, "patch_size": 4, "block": "adaLN-Zero"}
ARGPARSE = {"model": "DiT-B/4", "block": "adaln_zero", "data_path": "/data", "image_size": 256, "global_batch_size": 64}
YAML = {"model": {"value": {"name": "DiT-B/4", "block": "adaln_zero"}, "desc": None}, "data": {"value": "/imagenet"}}
SLASHES = {
    "args/model": "dit_b_4",
    "args/block": "adaln-zero",
    "args/dataset": "imagenet256",
    "args/global-batch-size": 64,
}


@pytest.mark.parametrize(
    "config",
    [
        {**HYDRA, "batch_size": 64, "seed": 2},
        {
            "cfg": {"model": SHAPE},
            "data": {"name": "ImageNet", "image_size": 256},
            "train": {"batch_size": 64, "seed": 2, "lr": "3e-4"},
        },
        {**ARGPARSE, "batch_size": 8, "global_seed": 2, "lr": 3e-4},
        {
            **YAML,
            **{name: {"value": v} for name, v in {"image_size": 256, "batch_size": 64, "seed": 2, "lr": 3e-4}.items()},
            "wandb_version": 1,
        },
        {**SLASHES, "args/seed": 2, "args/lr": 3e-4},
        {
            "model": {"_target_": "models.DiT_B_4", "conditioning": {"depth": 3}, "block": "adaln_zero"},
            "datamodule": {"batch_size": 8},
            "trainer": {"global_batch_size": 64, "seed": 2},
            "optimizer": {"params": {"lr": 3e-4}},
            "dataset": {"name": "ILSVRC2012", "resolution": 256},
        },
    ],
)
def test_nested_and_flat_configurations_of_other_tools_are_one_cell(folder, tmp_path, config):
    (folder / "a.json").write_text(
        json.dumps({"name": "my run", "config": config, "history": [{"step": 2000, "loss": 0.18}]})
    )
    [run] = imported(tmp_path, stated=("num_samples=1",)).runs
    cell = (
        run.model.block,
        run.model.size,
        run.model.patch_size,
        run.model.depth,
        run.data.name,
        run.batch_size,
        run.seed,
    )
    assert cell == ("adaln_zero", "B", 4, 12, "imagenet256", 64, 2)
    assert run.optim.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": "S", "model": {"depth": 24}, "dataset": "imagenet256"}, "depth is 24, that of size S is 12"),
        ({"size": "S", "cfg": {"model": {"size": "B"}}}, "size is told in several ways (size='S', cfg.model.size='B')"),
        ({"size": "S", "dataset": "ffhq", "image_size": 256}, "unknown dataset 'ffhq'"),
        ({"size": "S", "dataset": "imagenet512", "image_size": 256}, "image_size is 256, that of imagenet512 is 512"),
        ({"depth": 7, "hidden_size": 384, "dataset": "imagenet256"}, "no size has {'depth': 7, 'hidden_size': 384}"),
    ],
)
def test_what_disagrees_in_a_configuration_is_refused(folder, tmp_path, capsys, config, message):
    (folder / "a.json").write_text(
        json.dumps({"name": "my run", "config": config, "history": [{"step": 9, "loss": 1}]})
    )
    assert imported(tmp_path, stated=("block=adaln_zero", "patch_size=8", "batch_size=8")) == 2
    assert message in capsys.readouterr().err


def test_a_shape_that_no_size_has_is_a_size_of_its_own(folder, tmp_path):
    config = {"depth": 7, "hidden_size": 320, "num_heads": 5, "dataset": "imagenet256"}
    (folder / "a.json").write_text(
        json.dumps({"name": "my run", "config": config, "history": [{"step": 9, "loss": 1}]})
    )
    [run] = imported(tmp_path, stated=("block=adaln_zero", "patch_size=8", "batch_size=8")).runs
    assert (run.model.size, run.model.depth, run.model.hidden_size, run.model.num_heads) == ("custom", 7, 320, 5)


def test_a_loss_that_stops_being_finite_is_a_failure_with_its_step_and_never_a_number(folder, tmp_path, capsys):
    texts = [
        {"_step": 100, "loss": 0.3},
        {"_step": 200, "loss": "Infinity"},
        {"_step": 300, "loss": "NaN"},
        {"_step": 400, "loss": "NaN", "fid": "NaN"},
    ]
    numbers = [{**row, **{name: float(row[name]) for name in ("loss", "fid") if name in row}} for row in texts]
    for rows in (texts, numbers):
        whole(folder, "run", rows)
        [run] = imported(tmp_path, stated=CELL).runs
        assert run.steps == 400
        found = status_of(tmp_path)
        assert (found["state"], found["step"]) == ("failed", 200)
        assert found["reason"].startswith("not finite at step 200: loss inf")
        assert losses(tmp_path / "out")["loss"].tolist() == [0.3]
        assert collect(tmp_path / "out").table["status"].tolist() == ["failed"]
        assert "fid is not finite at step 400: left out" in capsys.readouterr().err
    (folder / "run.json").unlink()
    (folder / "run.csv").write_text("_step,loss,fid\n100,0.3,\n200,inf,\n300,nan,\n400,nan,\n")
    imported(tmp_path, stated=CELL)
    assert status_of(tmp_path)["reason"] == "not finite at step 200: loss inf; logged to step 400"


def test_a_table_tells_divergence_too_and_two_of_one_cell_are_named(folder, tmp_path, capsys):
    rows = [["one", "finished", "DiT-S/8", seed, 256, 256, 400, loss] for seed, loss in ((0, "NaN"), (1, "0.5"))]
    write_csv(folder / "project.csv", [*TABLE, "step", "loss"], rows)
    imported(tmp_path)
    assert [status_of(tmp_path, at)["state"] for at in (0, 1)] == ["failed", "done"]
    write_csv(folder / "project.csv", ["ID", *TABLE, "step", "loss"], [["a", *rows[0]], ["b", *rows[0]]])
    assert imported(tmp_path) == 2
    assert (
        "runs 'one' (a) and 'one' (b) of wandb:project.csv/a and wandb:project.csv/b are both"
        in capsys.readouterr().err
    )


def test_a_gap_is_no_divergence_and_a_recovered_loss_is_said(folder, tmp_path, capsys):
    nan = float("nan")
    rows = [{"_step": 1, "loss": 0.5, "lr": 1e-4, "fid": nan}, {"_step": 2, "loss": nan, "lr": nan, "fid": 30.0}]
    whole(folder, "run", rows)  # as pandas fills a table
    imported(tmp_path, stated=CELL)
    assert status_of(tmp_path)["state"] == "done"
    assert collect(tmp_path / "out").table["fid"].tolist() == [30.0]
    assert not capsys.readouterr().err
    whole(folder, "run", [{"_step": 1, "loss": 0.5}, {"_step": 2, "loss": nan}, {"_step": 3, "loss": 0.25}])
    imported(tmp_path, stated=CELL)
    assert losses(tmp_path / "out")["loss"].tolist() == [0.5, 0.25]
    assert "its loss is not finite at 1 step(s), the first 2, and finite again later" in capsys.readouterr().err


def test_an_offline_folder_is_read_by_its_log_which_has_checksums(tmp_path, monkeypatch, capsys):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(
        project="dit", name="DiT-S/8 mine", mode="offline", dir=str(tmp_path), config={"image_size": 256, "seed": 3}
    )
    for step in (100, 200):
        run.log({"train/step": step, "train/loss": 1 / step})
    run.config.update({"global_batch_size": 32})
    run.finish()
    wandb.teardown()
    (tmp_path / "wandb").rename(tmp_path / "in")
    [log] = (tmp_path / "in").glob("offline-run-*/*.wandb")
    [made] = imported(tmp_path).runs
    assert (made.batch_size, made.seed, made.model.size) == (32, 3, "S")
    assert (
        losses(tmp_path / "out")["loss"].tolist()
        == [row["train/loss"] for row in offline_run(log).rows]
        == [0.01, 0.005]
    )
    data = bytearray(log.read_bytes())
    at = data.index(b"0.005")
    data[at + 4] ^= 1
    log.write_bytes(data)
    assert imported(tmp_path) == 2
    assert "is damaged before byte" in capsys.readouterr().err


def test_a_runs_own_counts_stay_and_that_is_said(folder, tmp_path, capsys):
    config = {"image_size": 256, "batch_size": 10, "model/params": 40_000_000, "gflops": 1.0}
    whole(folder, "run", [{"step": 7, "loss": 0.5, "fid": 20.0}], config)
    imported(tmp_path)
    [row] = collect(tmp_path / "out").table.to_dict("records")
    assert (row["params"], row["gflops"], row["train_gflops"]) == (40_000_000, 1.0, pytest.approx(3 * 1.0 * 70))
    assert losses(tmp_path / "out")["train_gflops"].tolist() == [pytest.approx(3 * 1.0 * 70)]
    assert "its own params, 40000000, are kept; ours for this cell are 33142016" in capsys.readouterr().err


def test_a_study_of_losses_alone_is_fitted(folder, tmp_path, capsys):
    for size in ("S", "B", "L"):
        rows = [{"step": 100 * at, "loss": 0.2 + ord(size) % 7 / 100 + 1 / at} for at in range(1, 11)]
        config = {"size": size, "image_size": 256, "batch_size": 256, "patch_size": 8}
        (folder / f"{size}.json").write_text(json.dumps({"name": size, "config": config, "history": rows}))
    imported(tmp_path)
    assert main(["fit", str(tmp_path / "out"), "--of", "training_loss", "--replicates", "100"]) == 0
    assert "training loss" in capsys.readouterr().out
    assert main(["fit", str(tmp_path / "out")]) == 2
    assert "--of training_loss" in capsys.readouterr().err
