"""From a study's name or file to its cells: what comes with the package, files of one's own, and what is refused."""

import subprocess
import sys

import pytest

from dit.design.config import DATASETS
from dit.errors import UserError
from sweeps.study import declared, names, subset

HEAD = '''"""What for?"""
from dit.design.config import DATASETS, RunConfig, model_config
D = DATASETS["digits"]
def cell(block="adaln", size="S", patch=4, seed=0):
    return RunConfig(model_config(block, size, patch, D, ladder="nano"), D, 10, 8, seed)
'''


def study_file(folder, body, name="mine.py"):
    path = folder / name
    path.write_text(HEAD + body)
    return str(path)


def test_the_studies_that_come_with_the_package():
    assert {"demo", "grid", "paper"} <= set(names())
    assert names() == sorted(names())


@pytest.mark.parametrize("name", ["demo", "grid"])
def test_the_grids_have_every_block_size_and_patch_size_once(name):
    study = declared(name)
    assert len({run.hash for run in study.runs}) == len(study.runs) == 48
    assert len({(run.model.block, run.model.size, run.model.patch_size) for run in study.runs}) == 48
    smallest, *larger = sorted({run.model.patch_size for run in study.runs})
    assert larger == [2 * smallest, 4 * smallest]
    assert smallest == 2 or name != "grid"
    assert study.name == name
    for part in ("Question:", "Command:", "Cost:", "Expectation:"):
        assert part in study.doc


def test_the_papers_fifteen_runs_are_cells_of_the_grid():
    paper, grid = declared("paper").runs, declared("grid").runs
    assert len(paper) == 15
    assert set(paper) <= set(grid)
    others = {
        (run.model.block, run.model.size, run.model.patch_size) for run in paper if run.model.block != "adaln_zero"
    }
    assert others == {(block, "XL", 2) for block in ("in_context", "cross_attention", "adaln")}
    assert {(run.batch_size, run.steps, run.data) for run in grid} == {(256, 400_000, DATASETS["imagenet256"])}


def test_every_cell_of_the_demo_is_scored_along_its_training_and_at_its_end():
    for run in declared("demo").runs:
        assert len({e.step for e in run.evaluations}) >= 3
        assert max(e.step for e in run.evaluations) == run.steps
        assert {e.metric for e in run.evaluations} == {"fd_digits"}


def test_a_file_is_a_study_under_its_own_name(tmp_path):
    study = declared(study_file(tmp_path, "def runs():\n    return (cell(seed=seed) for seed in range(3))\n"))
    assert (study.name, study.doc) == ("mine", "What for?")
    assert [run.seed for run in study.runs] == [0, 1, 2]


def test_a_file_in_the_working_folder_needs_no_slash(tmp_path, monkeypatch):
    study_file(tmp_path, "def runs():\n    return [cell()]\n", "demo.py")
    monkeypatch.chdir(tmp_path)
    assert len(declared("demo.py").runs) == 1
    assert len(declared("demo").runs) == 48


def test_a_file_may_hold_a_dataclass_of_its_own(tmp_path):
    body = "from dataclasses import dataclass\n@dataclass\nclass Axis:\n    seed: int = 5\n"
    path = tmp_path / "mine.py"
    path.write_text(
        f"from __future__ import annotations\n{HEAD}{body}def runs():\n    return [cell(seed=Axis().seed)]\n"
    )
    assert declared(str(path)).runs[0].seed == 5


RUNS_LINE = HEAD.count("\n") + 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "study .*mine.py' has no runs"),
        ("runs = []\n", "has no runs"),
        ("def runs():\n    return []\n", "gave 0 cells: expected a non-empty list"),
        ("def runs():\n    return [cell(), 3]\n", "expected a non-empty list of RunConfig"),
        ("def runs():\n    return [cell(), cell(seed=1), cell()]\n", "two equal cells, numbers 0 and 2 "),
        ("def runs():\n    return [cell(patch=3)]\n", "^patch_size 3 does not divide"),
        ("def runs(:\n    pass\n", f"mine.py failed at line {RUNS_LINE}: SyntaxError"),
        ("\n1 / 0\n", f"mine.py failed at line {RUNS_LINE + 1}: ZeroDivisionError: division by zero"),
        ("import json\njson.loads('x')\n", f"mine.py failed at line {RUNS_LINE + 1}: JSONDecodeError"),
        ("import no_such_module\n", f"failed at line {RUNS_LINE}: ModuleNotFoundError"),
        ("def runs():\n    return [{}['a']]\n", f"mine.py failed at line {RUNS_LINE + 1}: KeyError"),
        (
            "def runs():\n    yield cell()\n    raise OSError('gone')\n",
            f"failed at line {RUNS_LINE + 2}: OSError: gone",
        ),
        ("def runs():\n    return None\n", "mine.py failed: TypeError"),
    ],
)
def test_a_file_that_declares_no_study_is_refused_with_the_line(tmp_path, body, message):
    with pytest.raises(UserError, match=message) as error:
        declared(study_file(tmp_path, body))
    assert "\n" not in str(error.value)


def test_cells_that_differ_only_in_what_is_scored_are_equal(tmp_path):
    body = "from dataclasses import replace\ndef runs():\n    return [cell(), replace(cell(), steps=20)]\n"
    with pytest.raises(UserError, match="two equal cells"):
        declared(study_file(tmp_path, body))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmo", r"unknown study 'dmo': expected one of .*demo.*grid.*paper.* or the path of a Python file"),
        ("nowhere.py", r"no study file at nowhere\.py"),
        ("./nowhere", "no study file at nowhere"),
    ],
)
def test_an_unknown_study_is_refused_with_the_ones_there_are(name, message):
    with pytest.raises(UserError, match=message):
        declared(name)


def test_a_file_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "study.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="is not a Python file"):
        declared(str(tmp_path / "study.yaml"))


def test_a_subset_keeps_the_order_of_the_study():
    study = declared("demo")
    assert subset(study, None) == study.runs
    chosen = subset(study, "size in ['S', 'XL'] and patch_size == 2 and block != 'adaln'")
    assert chosen == tuple(
        run for run in study.runs
        if run.model.size in ("S", "XL") and run.model.patch_size == 2 and run.model.block != "adaln"
    )  # fmt: skip
    assert len(chosen) == 6


@pytest.mark.parametrize(
    ("where", "message"),
    [("size ==", "does not parse"), ("colour == 1", "colour"), ("size == 'M'", "no cell of study 'demo' satisfies")],
)
def test_a_subset_that_is_none_is_refused(where, message):
    with pytest.raises(UserError, match=message):
        subset(declared("demo"), where)


def test_planning_does_not_import_jax():
    code = (
        "import dit.design.config, dit.design.flops, experiments, analysis, sweeps.sweep, sweeps.plan; "
        "from sweeps.study import declared, subset; "
        "[declared(name) for name in ('demo', 'grid', 'paper')]; subset(declared('grid'), \"size == 'S'\"); "
        "import sys; assert not {'jax', 'flax', 'optax', 'orbax', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
