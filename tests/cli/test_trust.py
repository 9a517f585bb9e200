"""A study's folder from a stranger is data: nothing in it is executed, and no name in it leads out of the folder or into a shell."""

import argparse
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_study import cells, write_study
from worker_processes import fake_cells, make_study

from analysis.figures.registry import draw_all
from analysis.results import collect, results
from dit.cli import main
from dit.design.config import RunArguments, from_json, to_json
from dit.errors import UserError
from dit.store.files import write_json
from dit.store.lease import attempts, run_files
from dit.store.paths import open_beneath
from dit.store.study import RunStore, exclusive, load_study, run_folder
from sweeps import arguments
from sweeps.devices import Share
from sweeps.engine import worker_command
from sweeps.engines.local import Process
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


@pytest.mark.parametrize(
    "place",
    ["runs", "RUN/attempts", "RUN/metrics", "RUN/checkpoints", "RUN/ema/.1.writing-x", "RUN/evals", "RUN/drawn"],
)
def test_no_claim_goes_through_a_link_inside_a_study(tmp_path, place):
    """To the outside, and to another place inside."""
    folder = make_study(tmp_path / "study", RUNS)
    path = folder / place.replace("RUN", f"runs/{RUNS[0].run}")
    path.parent.mkdir(parents=True, exist_ok=True)
    for target in (tmp_path / "outside", folder / "inside"):
        target.mkdir()
        (target / "0001.json").write_text("precious")
        path.symlink_to(target)
        for write in (
            Ledger(folder).claim,
            Ledger(folder).cancel,
            Ledger(folder).fail,
            RunStore(folder, RUNS[0]).create,
        ):
            with pytest.raises(UserError, match="is a link to"):
                write() if write.__name__ == "create" else write(RUNS[0], *["why"] * (write.__name__ == "fail"))
        assert [one.read_text() for one in target.iterdir()] == ["precious"]
        path.unlink()


@pytest.mark.parametrize(
    "name", [".lock", "study.json", "arguments.json", "queues", "logs/worker-0.log", "figures", "figures/fig13.png"]
)
def test_nothing_in_a_studys_folder_is_written_through_a_link(study, tmp_path, name, capsys):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    path = study / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if path.name in ("queues", "figures"):
        outside = tmp_path / "folder"
        outside.mkdir()
    path.symlink_to(outside)
    with pytest.raises(UserError, match=r"is a link to .*, outside the study's folder"):
        if name == ".lock":
            with exclusive(path):
                pass
        elif name.startswith("logs"):
            Process(0, study, Share(()))
        elif name.startswith("figures"):
            list(draw_all(collect(study), study / "figures", ["fig13"]))
        else:
            write_json(path / "local.json" if path.is_dir() else path, {})
    assert list(outside.iterdir()) == [] if outside.is_dir() else outside.read_text() == "precious"


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(study):
    (study / "logs").mkdir()
    os.mkfifo(study / "logs" / "worker-0.log")
    with pytest.raises(UserError, match="is a pipe or a device"):
        Process(0, study, Share(()))


def test_links_of_wandbs_own_making_stop_no_run(tmp_path):
    folder = make_study(tmp_path / "study", RUNS)
    place = RunStore(folder, RUNS[0]).path / "wandb"
    place.mkdir(parents=True)
    (place / "latest-run").symlink_to(place)
    with Ledger(folder).claim(RUNS[0]) as held:
        assert held.token == 1


def test_a_study_may_itself_be_reached_by_a_link(tmp_path):
    folder = make_study(tmp_path / "disk" / "study", RUNS)
    (tmp_path / "study").symlink_to(folder)
    with Ledger(tmp_path / "study").claim(RUNS[0]) as held:
        assert held.token == 1


def test_a_file_is_opened_from_folder_to_folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to("b")
    (tmp_path / "a" / "b" / "file").symlink_to(tmp_path / "victim")
    for relative in ("a/link/new", "a/b/file"):
        with pytest.raises(UserError, match="is a link to"):
            open_beneath(tmp_path, relative, os.O_WRONLY | os.O_CREAT)
    os.close(open_beneath(tmp_path, "a/b/new", os.O_WRONLY | os.O_CREAT))
    with pytest.raises(FileNotFoundError, match="a/nothing"):
        open_beneath(tmp_path, "a/nothing/new", os.O_WRONLY | os.O_CREAT)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["file", "new"]


@pytest.mark.parametrize("where", ["status.json", "attempts/0001.json", "metrics/0001.jsonl", "evals/x.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_the_place_of_a_record_is_refused_at_once(tmp_path, where, kind):
    folder = make_study(tmp_path, RUNS)
    record = RunStore(folder, RUNS[0])
    path = record.path / where
    path.parent.mkdir(parents=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    readers = {"status.json": record.status, "metrics": record.metrics, "evals": record.evaluations}
    read = readers.get(where.partition("/")[0], lambda: attempts(run_files(record.path)))
    with pytest.raises(UserError, match="is no regular file"):
        read()
    with pytest.raises(UserError, match=r"is a link|pipe or a device|is no regular file"):
        Ledger(folder).claim(RUNS[0])


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

    No text is evaluated: `--where`, and what a figure's sidecar says of it, is read by `dit.design.query`.
    """
    forbidden = r"allow_pickle\s*=\s*True|\bpickle\.loads?\(|cloudpickle|shell\s*=\s*True|os\.system\(|\beval\(|\bexec\(|\.query\("
    for path in [path for room in ("dit", "sweeps", "analysis", "experiments") for path in (ROOT / room).rglob("*.py")]:
        found = set(re.findall(forbidden, path.read_text()))
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


STUDY = """
import helper
from dit.config import DATASETS, RunConfig, model_config

DATA = DATASETS["digits"]


def runs():
    return [RunConfig(model_config("adaln", "S", 4, DATA, ladder="nano"), DATA, helper.STEPS, 4)]
"""


@pytest.mark.parametrize("start", [["-m", "dit"], ["-P", "-m", "dit"]])
def test_folders_of_the_users_own_are_not_taken_for_the_packages(tmp_path, start):
    """The command, its workers and a study file's siblings, called where folders have the package's names."""
    for name in ("sweeps", "analysis", "experiments", "dit", "jax"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("import os\nos.mkdir('executed')\nraise SystemExit(9)\n")
    if "-P" not in start:
        shutil.rmtree(tmp_path / "dit")  # Python itself looks for that one before any line of ours runs
    (tmp_path / "helper.py").write_text("STEPS = 7\n")
    (tmp_path / "mine.py").write_text(STUDY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in (["plan", "mine.py", "--json"], ["sweep", "mine.py", "--out", "out", "--declare"], ["status", "out"]):
        done = subprocess.run(
            [sys.executable, *start, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    worker = [*worker_command(tmp_path / "out"), "--cell", "none"]
    done = subprocess.run(worker, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "has no cell 'none'" in done.stderr
    assert not (tmp_path / "executed").exists()


def parsed(*options):
    parser = argparse.ArgumentParser()
    arguments.declare(parser)
    arguments.declare_trust(parser)
    return parser.parse_args(options)


def test_arguments_that_came_with_a_folder_must_be_confirmed(tmp_path, capsys):
    """A copy or an unpacked archive keeps files, owners and times, but not when the file system last changed the file."""
    folder = make_study(tmp_path / "study", RUNS)
    recorded = RunArguments(log_every=7, data="gs://bucket/latents", wandb="online")
    arguments.save(folder, recorded)
    assert arguments.of(parsed(), folder) == recorded
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with pytest.raises(
        UserError, match=r"says wandb='online', data='gs://bucket/latents': confirm it with --trust-arguments"
    ):
        arguments.of(parsed(), copy)
    assert main(["worker", "--study", str(copy)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert arguments.of(parsed("--trust-arguments"), copy) == recorded
    own = arguments.of(parsed("--data", "mine", "--wandb", "off"), copy)
    assert (own.data, own.wandb, own.log_every) == ("mine", "off", 7)
    arguments.save(copy, recorded)  # as a sweep does that was told to trust them
    assert arguments.of(parsed(), copy) == recorded
    for seal in ('{"schema_version": 1, "changed_ns": 1}', "[]"):
        (copy / arguments.SEAL).write_text(seal)
        with pytest.raises(UserError, match="--trust-arguments"):
            arguments.of(parsed(), copy)


def test_arguments_of_another_user_are_confirmed_whatever_they_say(tmp_path, monkeypatch):
    folder = make_study(tmp_path / "study", RUNS)
    arguments.save(folder, RunArguments(log_every=7))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UserError, match="was not written here by you, and says log_every=7"):
        arguments.of(parsed(), folder)
    assert arguments.of(parsed("--log-every", "9"), folder).log_every == 9
    assert arguments.of(parsed("--trust-arguments"), folder).log_every == 7
    arguments.save(folder, RunArguments())
    assert arguments.of(parsed(), folder) == RunArguments()
