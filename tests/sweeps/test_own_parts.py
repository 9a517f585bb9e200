"""A study's own file with parts and siblings of its own: from the page to every verb, what is kept, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dit.design import flops, parts
from dit.design.blocks import Block
from dit.design.data import Data
from dit.errors import UserError
from dit.store.study import load_study, save_study
from sweeps.study import declared, run_kept

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text()
STUDY, PICTURES, HALFWAY = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def write(folder, text=STUDY, **beside):
    folder.mkdir(exist_ok=True)
    for name, body in beside.items():
        (folder / f"{name}.py").write_text(body)
    (folder / "gates.py").write_text(text)
    return str(folder / "gates.py")


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    study = declared(write(folder), check=True)
    save_study(folder / "out", study)
    return study, folder / "out"


def test_the_study_of_the_page_is_kept_with_its_parts_as_data(gates):
    study, folder = gates
    value = json.loads((folder / "study.json").read_text())
    assert (folder / "study.py").read_text() == STUDY and list(value["files"]) == ["study.py"]
    block, data = sorted(value["parts"], key=lambda part: part["kind"])
    assert (block["name"], block["label"], len(block["counts"]), data["name"]) == ("gated", "Gates alone", 8, "spots")
    assert {run.model.block_source for run in study.runs} == {"", block["source"]}
    assert {run.data.source for run in study.runs} == {data["source"]}


def test_reading_a_folder_runs_nothing_of_it(gates):
    study, folder = gates
    (folder / "study.py").write_text("raise SystemExit('was run')")
    code = (
        "import sys; from pathlib import Path; from dit.design import flops; from dit.store.study import load_study\n"
        "study = load_study(Path(sys.argv[1]))\n"
        "print([[flops.params(run.model), flops.macs(run.model)] for run in study.runs], 'jax' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    told = subprocess.run(command, check=True, text=True, capture_output=True).stdout.strip()
    assert told == f"{[[flops.params(run.model), flops.macs(run.model)] for run in study.runs]} False"
    with pytest.raises(UserError, match=r"study.py is missing or not the file that was swept \(SHA-256 [0-9a-f]{12}\)"):
        run_kept(folder)
    (folder / "study.py").write_text(STUDY)


def test_the_page_s_pictures_come_from_files(tmp_path):
    from PIL import Image

    for name in ("a/1.png", "b/2.png"):
        path = tmp_path / "faces" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (9, 8), "red").save(path)
    np.savez(tmp_path / "cells.npz", images=np.zeros((3, 8, 8, 2), np.uint8), labels=np.arange(3))
    space = {"__name__": "page"}
    exec(compile(PICTURES, "page", "exec"), space)
    faces, cells = space["pictures"](tmp_path)
    assert (faces.num_classes, faces.channels, cells.config.in_channels) == (2, 3, 2)


def test_changed_code_gives_other_cells_and_the_old_part_stays_on_record(gates, tmp_path):
    study, folder = gates
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = Path(write(tmp_path / "changed", STUDY.replace("return x + gate2", "return x - gate2")))
    other = declared(str(path))
    assert {run.run for run in other.runs} & {run.run for run in study.runs} == {
        run.run for run in study.runs if run.model.block == "adaln_zero"
    }
    save_study(copy, other)
    told = json.loads((copy / "study.json").read_text())["parts"]
    assert len([part for part in told if part["name"] == "gated"]) == 2
    run_kept(copy)
    assert len(load_study(copy).runs) == 4
    same = declared(write(tmp_path / "same", STUDY.replace("Gates alone", "Only gates") + "\n# a remark\n"))
    assert [run.run for run in same.runs] == [run.run for run in study.runs]


def test_siblings_are_imported_kept_and_do_not_leak(tmp_path):
    text = STUDY.replace('"""\n', '"""\nfrom common import STEPS\nimport deep.er\n', 1).replace(
        "steps=4", "steps=STEPS"
    )
    for name, steps in (("one", 5), ("two", 6)):
        path = write(tmp_path / name, text, common=f"STEPS = {steps}\n")
        (tmp_path / name / "deep").mkdir()
        (tmp_path / name / "deep/er.py").write_text("")
        study = declared(path)
        assert {run.steps for run in study.runs} == {steps} and set(study.files) == {
            "study.py",
            "study/common.py",
            "study/deep/er.py",
        }
        assert "common" not in sys.modules and str(tmp_path / name) not in sys.path


BAD = [
    ("modulation=2)", "modulation=3)", r"counts 30,144 multiply-adds of one block of S/4, the traced model has 29,568: mend"),
    ("        return x + gate2", "        return x[..., :8] #", r"'gated' gives back \(1, 4, 8\) for tokens of \(1, 4, 24\)"),
    ('Block("gated"', 'Block("adaln"', "block 'adaln' is one of the package's own"),
    ("return images, labels", "return images, labels + 1", "label 2 of image 1 is none of its classes, 0 to 1"),
    ("np.uint8)", "np.float32)", "images are float32"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), BAD, ids=lambda case: str(case)[:20])
def test_a_part_that_is_not_what_it_says_is_refused_in_a_line(tmp_path, old, new, message):
    assert old in STUDY
    with pytest.raises(UserError, match=message) as refused:
        declared(write(tmp_path, STUDY.replace(old, new)), check=True)
    assert "\n" not in str(refused.value)


def test_a_block_without_a_count_is_counted_by_the_traced_model(tmp_path, capsys, gates):
    study, _ = gates
    counted = declared(write(tmp_path, STUDY.replace("attention_and_mlp(modulation=2), c", "None, c")), check=True)
    assert capsys.readouterr().err == "block 'gated' has no count of its own: counted from the traced model\n"
    assert [run.run for run in counted.runs] == [run.run for run in study.runs]
    assert [flops.macs(run.model) for run in counted.runs] == [flops.macs(run.model) for run in study.runs]
    assert [flops.params(run.model) for run in counted.runs] == [flops.params(run.model) for run in study.runs]


def test_a_study_of_the_version_before_is_read():
    study = load_study(Path(__file__).parents[2] / "tests/golden/study-before-parts")
    assert [run.run for run in study.runs] == [run.run for run in declared("demo").runs][:3] and not study.parts


def test_the_page_s_sampler_is_counted_by_its_calls(tmp_path):
    (run,) = declared(write(tmp_path, HALFWAY), check=True).runs
    assert [flops.model_calls(run, one)[0] for one in run.evaluations] == [4, 8]
    kinds = {kind for kind, _, _ in run.own_parts}
    assert kinds == {"Objective", "Sampler", "Features", "Metric"}


@pytest.mark.long
def test_the_page_s_objective_sampler_features_and_metric_are_swept(tmp_path):
    path, out = write(tmp_path, HALFWAY), str(tmp_path / "out")
    for verb in (["sweep", path, "--out", out], ["results", out, "--json"]):
        done = subprocess.run([sys.executable, "-m", "dit", *verb], text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert sorted(row["nfe"] for row in rows) == [4, 8] and all(row["gap_rows"] >= 0 for row in rows)


@pytest.mark.long
def test_the_page_s_study_goes_through_the_verbs(tmp_path):
    path, out = write(tmp_path), str(tmp_path / "out")
    for verb in (
        ["plan", path],
        ["plan", path, "--hardware", "cpu"],
        ["sweep", path, "--out", out, "--workers", "2"],
        ["status", out],
        ["plan", out],
        ["sample", "--grid", out, "--out", str(tmp_path / "grid.png"), "--steps", "2"],
    ):
        done = subprocess.run([sys.executable, "-m", "dit", *verb], text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    assert (
        "gated-S-4-s0"
        in subprocess.run([sys.executable, "-m", "dit", "plan", out], text=True, capture_output=True).stdout
    )


@pytest.mark.long
def test_its_cells_train_on_eight_devices(tmp_path):
    path = write(tmp_path)
    code = (
        "import sys; from sweeps.study import declared; from dit.model.mesh import make_mesh; from dit.train.step import build\n"
        "from dit.data.batches import ImageDataset, load_images\n"
        "run = declared(sys.argv[1]).runs[0]; program = build(run, make_mesh(sys.argv[2]))\n"
        "data = ImageDataset(*load_images(run.data.name, run.data.source), run.batch_size, run.seed)\n"
        "state, losses = program.init(), []\n"
        "for step in range(2):\n"
        "    state, metrics = program.step(state, *program.put(data.batch(step))); losses.append(float(metrics.loss))\n"
        "print(losses)"
    )
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"}
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code, path, mesh], check=True, text=True, capture_output=True, env=env
            ).stdout
        )
        for mesh in ("data=1", "data=2,fsdp=2,tensor=2")
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=2e-5)


@pytest.mark.long
def test_the_type_checker_names_each_missing_field(tmp_path):
    path = tmp_path / "incomplete.py"
    path.write_text('from dit.config import Block, Data\nBlock("mine")\nData("mine")\n')
    checker = Path(sys.executable).with_name("pyright")
    if not checker.exists():
        pytest.skip("pyright is not installed")
    command = [str(checker), "--pythonpath", sys.executable, str(path)]
    told = subprocess.run(command, text=True, capture_output=True, cwd=Path(__file__).parents[2]).stdout
    for field in ("make", "count", "condition", "final", "label"):
        assert f'"{field}"' in told.split("\n")[1]
    assert '"image_size", "channels", "num_classes", "load"' in told


def test_names_of_parts_are_told_apart_by_kind():
    assert parts.named(Block, "adaln").word == "block" and parts.named(Data, "digits").word == "data set"


def test_an_installed_package_brings_an_engine_as_an_entry_point(tmp_path):
    (tmp_path / "mine.py").write_text("def declare(parser):\n    parser.add_argument('--of-mine')\n")
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[dit.engines]\nmine = mine\n")
    code = (
        "import argparse; from sweeps import engines; parser = argparse.ArgumentParser(); engines.declare(parser)\n"
        "args = parser.parse_args(['--engine', 'mine', '--of-mine', 'x']); print(engines.ENGINES, args.of_mine)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    told = subprocess.run([sys.executable, "-c", code], check=True, text=True, capture_output=True, env=env).stdout
    assert told == "('local', 'ray', 'slurm', 'mine') x\n"
