"""A study's folder from a stranger is data: nothing in it is executed, and no name in it leads out of the folder or into a shell."""

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from synthetic_study import cells, write_study
from worker_processes import fake_cells, make_study

from analysis.results import results
from dit.cli import main
from dit.design.config import from_json, to_json
from dit.errors import UserError
from dit.store.files import write_json
from dit.store.lease import attempts, run_files
from dit.store.study import RunStore, load_study, run_folder
from sweeps.engine import worker_command
from sweeps.ledger import Ledger
from sweeps.status import status_rows

ROOT = Path(__file__).parents[2]
RUNS = fake_cells(2)
NAMES = [
    "../up",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "a b",
    "$(touch x)",
    "; rm -rf .",
    "-rf",
    "a\nb",
    "a\0b",
    "ü",
]


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def study(tmp_path):
    """A finished study with pictures."""
    return write_study(tmp_path / "out", cells(blocks=("adaln",), sizes=("S",), patches=(4,), sampling=()))


@pytest.mark.parametrize("name", NAMES)
def test_a_runs_name_is_a_plain_file_name(tmp_path, name):
    with pytest.raises(UserError, match="is no run's name"):
        run_folder(tmp_path, name)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_strangers_study_stay_in_its_folder(tmp_path, name):
    """Whatever the fields say, the run's name is made of harmless letters."""
    make_study(tmp_path, RUNS)
    value = json.loads((tmp_path / "study.json").read_text())
    value["runs"][0]["model"]["size"] = name
    value["runs"][0]["model"]["ladder"] = name
    write_json(tmp_path / "study.json", value)
    for run in load_study(tmp_path).runs:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", run.run)
        assert RunStore(tmp_path, run).path.resolve().parent == (tmp_path / "runs").resolve()


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("model", "patch_size", "../../x"),
        ("model", "block", "../../x"),
        ("evaluations", "step", "../../x"),
        ("evaluations", "sampler", "../../x"),
    ],
)
def test_fields_that_name_files_are_checked(part, field, value):
    stranger = json.loads(json.dumps(to_json(RUNS[0])))
    (stranger[part] if part == "model" else stranger[part][0])[field] = value
    with pytest.raises(UserError):
        from_json(stranger)


def test_a_link_out_of_the_study_is_not_written_through(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = make_study(tmp_path / "study", RUNS)
    place = RunStore(folder, RUNS[0]).path
    place.parent.mkdir()
    place.symlink_to(outside)
    with pytest.raises(UserError, match=r"is a link to .*outside, outside the study's folder"):
        RunStore(folder, RUNS[0]).create()
    for write in (Ledger(folder).claim, Ledger(folder).cancel):
        with pytest.raises(UserError, match="outside the study's folder"):
            write(RUNS[0])
    assert list(outside.iterdir()) == []


def test_a_pickle_in_the_place_of_samples_is_not_executed(study, tmp_path, capsys, monkeypatch):
    mark = tmp_path / "executed"
    for path in study.rglob("samples/*.npz"):
        np.savez(path, images=np.array([Bomb(mark)], dtype=object), labels=np.arange(1))
    with pytest.raises(ValueError, match="allow_pickle"), np.load(path) as file:
        file["images"]
    monkeypatch.chdir(tmp_path)
    main(["figures", str(study)])
    assert "allow_pickle" not in capsys.readouterr().out
    assert not mark.exists()


@pytest.mark.parametrize("where", ["status.json", "attempts/0001.json", "config.json", "evals", "metrics/0001.jsonl"])
def test_a_pickle_in_the_place_of_a_record_is_not_executed(study, tmp_path, where):
    mark = tmp_path / "executed"
    (run,) = load_study(study).runs
    place = RunStore(study, run).path / where
    paths = list(place.iterdir()) if place.is_dir() else [place]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(Bomb(mark)) + b"\n" + pickle.dumps(Bomb(mark)))
    for read in (lambda: status_rows(Ledger(study)), lambda: results(study), lambda: RunStore(study, run).metrics()):
        try:
            read()
        except UserError as error:
            assert str(RunStore(study, run).path) in str(error)
    assert attempts(run_files(RunStore(study, run).path)) is not None
    assert not mark.exists()


def test_nothing_loads_pickles_and_no_shell_is_ever_used():
    """The one pickle reader is `dit.weights.torch_pickle`, which executes nothing (see its tests); commands are lists of arguments.

    The one `eval` is pandas' own, of the user's words after `--where`: nothing from a folder reaches it.
    """
    forbidden = (
        r"allow_pickle\s*=\s*True|\bpickle\.loads?\(|cloudpickle|shell\s*=\s*True|os\.system\(|\beval\(|\bexec\("
    )
    for path in [path for room in ("dit", "sweeps", "analysis", "experiments") for path in (ROOT / room).rglob("*.py")]:
        found = set(re.findall(forbidden, path.read_text())) - ({"eval("} if path.name == "query.py" else set())
        assert not found, (path, found)


def test_a_command_keeps_odd_names_as_one_argument(tmp_path):
    folder = tmp_path / "a study; $(touch x) 'of mine'"
    command = worker_command(folder, RUNS[0].run)
    assert command[command.index("--study") + 1] == str(folder)
    make_study(folder, RUNS)
    assert main(["status", str(folder)]) == 0


def test_a_strangers_reason_does_not_reach_the_terminal_raw(study, capsys):
    (run,) = load_study(study).runs
    RunStore(study, run).set_status("failed", step=1, attempt=1, reason="\x1b]0;owned\x07\x1b[2J gone\nnext line")
    assert main(["status", str(study)]) == 0
    out, _ = capsys.readouterr()
    assert "gone next line" in out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", out)
