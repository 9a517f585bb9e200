"""What a person does with a study under way: `dit status`, `retry`, `cancel` and `doctor`, on studies made by hand."""

import json
import os
import re
import shutil
import time
from types import SimpleNamespace

import pytest
from synthetic_study import write_run
from worker_processes import fake_cells

from dit.cli import main
from dit.design.config import RunArguments
from dit.design.flops import scoring_gflops
from dit.store import lease_files
from dit.store.lease import Attempt, run_files
from dit.store.study import FAILED, RUNNING, RunStore, Study, save_study
from sweeps import arguments, doctor
from sweeps.ledger import Ledger
from sweeps.progress import work
from sweeps.status import status_rows, summary

RUNS = fake_cells(5, steps=100)
ELSEWHERE = {"host": "node7", "boot": "of its own", "pid": 11, "started": "1"}


@pytest.fixture
def study(tmp_path):
    """One cell done, two failed (the second later), one held on another host, one planned."""
    folder = tmp_path / "out"
    save_study(folder, Study("mine", "", RUNS))
    write_run(folder, "mine", RUNS[0], images=False)
    write_run(folder, "mine", RUNS[1], failed="the loss is gone", images=False)
    time.sleep(0.01)
    write_run(folder, "mine", RUNS[2], failed="a shard is corrupt", images=False)
    RunStore(folder, RUNS[3]).set_status(RUNNING, step=20, attempt=1, loss=0.5)
    progress = {"from": [20, 0], "step": 40, "loss": 0.25, "images_per_s": 8.0}
    hold(folder, RUNS[3], Attempt(1, ELSEWHERE, 3, 60.0, 12.0, "", progress))
    return folder


def hold(folder, run, attempt):
    path = RunStore(folder, run).path / "attempts" / f"{attempt.token:04d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(attempt.to_bytes())
    return path


def shown(capsys, *line, code=0):
    assert main(list(map(str, line))) == code
    out, err = capsys.readouterr()
    return out, err


def test_the_status_tells_state_step_loss_speed_and_who_is_at_it(study, capsys):
    rows = json.loads(shown(capsys, "status", study, "--json")[0])
    assert [row["status"] for row in rows] == ["done", "failed", "failed", "running", "planned"]
    held = rows[3]
    assert (held["step"], held["loss"], held["images_per_s"], held["worker"]) == (40, 0.25, 8.0, "node7:11")
    assert not held["stale"]
    out, _ = shown(capsys, "status", study)
    assert re.search(r"running +40/100 +0\.25 +8 ", out)
    assert "1 of 5 done, 1 planned, 1 running, 2 failed, time left " in out
    assert out.splitlines()[-1] == f"last failure: {RUNS[2].run} at step 50: a shard is corrupt"


def test_time_left_follows_the_speed_of_each_cell(study):
    rows = status_rows(Ledger(study))
    assert [row["left_s"] for row in rows[:3]] == [0.0, 0.0, 0.0]
    training = (100 - 40) * 4 / 8.0
    per_gflop = training / (rows[3]["train_gflops"] * 60 / 40)
    assert rows[3]["left_s"] == pytest.approx(training + 0.6 * scoring_gflops(RUNS[3]) * per_gflop, rel=1e-12)
    assert rows[4]["left_s"] == pytest.approx(work(RUNS[4]) * per_gflop, rel=1e-12)
    assert summary(rows).left_s == pytest.approx(rows[3]["left_s"] + rows[4]["left_s"], rel=1e-12)
    hold(study, RUNS[0], Attempt(1, ELSEWHERE, 3, 60.0, 70.0, "done"))
    assert status_rows(Ledger(study))[4]["left_s"] == pytest.approx(70.0), "a twin took so long"


def test_a_worker_that_is_silent_by_the_storages_clock_is_shown_as_stale(study, capsys):
    path = run_files(RunStore(study, RUNS[3]).path).folder / "0001.json"
    now = os.stat(path).st_mtime
    os.utime(path, (now - 200, now - 200))
    out, _ = shown(capsys, "status", study)
    assert "running?" in out
    assert re.search(rf"^stale: node7:11 with {RUNS[3].run}, silent for 20\d s$", out, re.MULTILINE)
    os.utime(path, (now + 3600, now + 3600))
    assert "stale" not in shown(capsys, "status", study)[0], "a stamp from the future is no silence"


def test_the_status_of_chosen_cells_and_until_all_have_ended(study, capsys):
    out, _ = shown(capsys, "status", study, "--where", "status == 'failed'")
    assert RUNS[1].run in out
    assert RUNS[0].run not in out
    for run in RUNS[3:]:
        shutil.rmtree(RunStore(study, run).path, ignore_errors=True)
        write_run(study, "mine", run, images=False)
    out, _ = shown(capsys, "status", study, "--watch")
    assert "3 of 5 done, 2 failed\n" in out


def test_retry_takes_up_what_failed_and_says_which(study, capsys):
    out, err = shown(capsys, "retry", study, "--cell", RUNS[1].run)
    assert (out, err) == (f"{RUNS[1].run}\n", "1 to be taken up again by the next `dit sweep` or `dit worker`\n")
    out, err = shown(capsys, "retry", study, "--where", "step >= 50")
    assert out == f"{RUNS[2].run}\n"
    assert [cell.state for cell in Ledger(study).cells()][1:3] == ["retryable", "retryable"]
    assert shown(capsys, "retry", study)[0] == ""


def test_cancel_asks_the_open_cells_and_leaves_the_ended_ones(study, capsys):
    out, err = shown(capsys, "cancel", study)
    assert out.split() == [RUNS[3].run, RUNS[4].run]
    assert err == "2 cancelled, 1 of them running: they save and stop at their next heartbeat\n"
    cells = Ledger(study).cells()
    assert [cell.state for cell in cells] == ["done", "failed", "failed", "running", "cancelled"]
    assert cells[3].reason == "asked to save and stop"
    assert shown(capsys, "retry", study, "--cell", RUNS[4].run)[0] == f"{RUNS[4].run}\n"
    assert Ledger(study).cells()[4].state == "planned"


@pytest.mark.parametrize("verb", ["retry", "cancel"])
def test_cells_that_are_not_the_studys_are_refused(study, capsys, verb):
    before = sorted(study.rglob("*"))
    _, err = shown(capsys, verb, study, "--cell", "../../elsewhere", code=2)
    assert err.count("\n") == 1
    assert "has no cell '../../elsewhere'" in err
    assert (
        "name 'colour' is not defined; expected the columns run, "
        in shown(capsys, verb, study, "--where", "colour == 1", code=2)[1]
    )
    assert sorted(study.rglob("*")) == before


@pytest.fixture
def quick(monkeypatch):
    """A doctor that does not start JAX anew for each test."""
    monkeypatch.setattr(doctor, "devices", lambda: doctor.Finding("ok", "devices", "1 x cpu (cpu)"))


def findings(capsys, *line, code):
    return {one["what"]: one for one in json.loads(shown(capsys, "doctor", *line, "--json", code=code)[0])}


def test_the_doctor_says_ok_line_by_line(tmp_path, capsys):
    out, _ = shown(capsys, "doctor", tmp_path / "new")
    lines = [line.split(maxsplit=2)[:2] for line in out.splitlines()]
    names = ["python", "packages", "devices", "study", "wandb", "storage", "lease", "clock", "disk"]
    assert [what for _, what in lines] == names
    assert {level for level, _ in lines} <= {"ok", "warn"}
    assert "x cpu (cpu)" in out
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_the_doctor_examines_a_study(study, quick, capsys):
    before = sorted(study.rglob("*"))
    found = findings(capsys, study, code=0)
    assert found["study"]["level"] == "warn"
    assert "5 cells: 1 done, 2 failed, 1 planned, 1 running" in found["study"]["seen"]
    assert "dit retry" in found["study"]["remedy"]
    assert sorted(study.rglob("*")) == before
    (study / "study.json").write_text("{")
    assert findings(capsys, study, code=1)["study"]["level"] == "fail"


def test_a_disk_that_grants_a_claim_to_all_is_found_out(tmp_path, quick, capsys, monkeypatch):
    def everyone(files, name, data):
        files.folder.mkdir(parents=True, exist_ok=True)
        files.replace(name, data)
        return True

    monkeypatch.setattr(lease_files.DiskFiles, "create", everyone)
    found = findings(capsys, tmp_path, code=1)["lease"]
    assert found["level"] == "fail"
    assert re.match(r"8 of 8 claims won, expected one", found["seen"])
    assert "another disk" in found["remedy"]


def test_a_folder_that_cannot_be_written_is_found_out(tmp_path, quick, capsys, monkeypatch):
    def refuse(_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)
    found = findings(capsys, tmp_path, code=1)
    assert found["storage"]["level"] == "fail"
    assert "Read-only file system" in found["storage"]["seen"]
    assert "lease" not in found


def test_devices_that_do_not_start_are_found_out(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    found = doctor.devices()
    assert (found.level, "abacus" in found.seen) == ("fail", True)


def test_idle_gpus_are_pointed_out(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(doctor, "gpus", lambda: ["0", "1"])
    seen = SimpleNamespace(returncode=0, stdout='[["cpu", "cpu"]]\n', stderr="")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: seen)
    found = doctor.devices()
    assert (found.level, found.remedy) == ("warn", "pip install 'dit-scaling[cuda]'")
    assert found.seen == "1 x cpu (cpu), but this machine has GPUs"


@pytest.mark.parametrize(("free", "level"), [(2**50, "ok"), (2**30, "warn"), (2**20, "fail")])
def test_a_disk_that_fills_is_seen_coming(study, monkeypatch, free, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    found = doctor.disk(study, Study("mine", "", RUNS), RunArguments())
    assert found.level == level
    assert "GiB free" in found.seen


def test_a_mirror_that_cannot_work_is_pointed_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert doctor.wandb(RunArguments()).seen == "off"
    assert doctor.wandb(RunArguments(wandb="offline")).level == "ok"
    assert doctor.wandb(RunArguments(wandb="online")).remedy == "wandb login, or sweep with --wandb offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert doctor.wandb(RunArguments(wandb="offline")).level == "warn"


def test_arguments_are_remembered_and_a_strangers_are_checked(tmp_path, capsys, study):
    chosen = RunArguments(log_every=7, data="/a path/with; odd $(names)")
    arguments.save(tmp_path, chosen)
    assert arguments.load(tmp_path) == chosen
    for text in ('{"log_every": "50"}', '{"shell": "rm"}', "[1]", '{"log_every": true}'):
        (study / "arguments.json").write_text(text)
        _, err = shown(capsys, "worker", "--study", study, code=2)
        assert "does not hold run arguments of this version" in err


def test_a_failure_given_by_hand_ends_a_cell_that_nobody_holds(study):
    ledger = Ledger(study)
    assert ledger.fail(RUNS[4], "its worker died 3 times")
    assert (ledger.cell(RUNS[4]).state, ledger.cell(RUNS[4]).reason) == (FAILED, "its worker died 3 times")
    assert not ledger.fail(RUNS[0], "it is done")
    assert not ledger.fail(RUNS[3], "it is held")
