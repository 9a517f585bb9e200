"""Whole sweeps with real worker processes: resumed, killed, failing, grown; the table comes out the same bit for bit."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pandas.testing import assert_frame_equal

from analysis.results import results
from dit.errors import UserError
from dit.store.lease import Observer, attempts, claim, run_files
from dit.store.study import RunStore, load_study, read_evaluation, save_study
from dit.train.throughput import TIMINGS
from sweeps import devices
from sweeps.devices import default_workers
from sweeps.ledger import Ledger
from sweeps.status import status_rows
from sweeps.study import declared

pytestmark = pytest.mark.slow

STUDY = '''"""Three cells of a few hundred steps."""
from dit.design.config import DATASETS, Evaluation, OptimConfig, RunConfig, model_config
D = DATASETS["digits"]
SCORES = tuple(Evaluation(step, "digits", num_samples=16, sampling_steps=2) for step in (150, 300))
def cell(seed, rate=1e-3):
    model = model_config("adaln", "S", 4, D, ladder="nano")
    return RunConfig(model, D, 300, 4, seed, optim=OptimConfig(learning_rate=rate), evaluations=SCORES)
def runs():
    return [cell(seed) for seed in (0, 1, 2)]
'''
GROWN = STUDY.replace("(0, 1, 2)]", "(0, 1, 2, 3)] + [cell(4, rate=1e30)]")
OPTIONS = ["--workers", "2", "--log-every", "50", "--checkpoint-every", "100"]


def command(study, out, *options):
    return [sys.executable, "-m", "dit", "sweep", str(study), "--out", str(out), *OPTIONS, *options]


def sweep(study, out, *options, **named):
    """A finished `dit sweep`."""
    return subprocess.run(command(study, out, *options), capture_output=True, text=True, timeout=600, **named)


@contextlib.contextmanager
def started(line, stderr):
    """A `dit sweep` under way, in a session of its own; killed if the test ends before it."""
    with subprocess.Popen(line, stderr=stderr, text=True, start_new_session=True) as parent:
        try:
            yield parent
        finally:
            parent.kill()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "mine.py"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """The folder of an uninterrupted sweep, and what it printed."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, sweep(study, out)


def times(folder):
    """When each file of record was written; locks and workers' logs are none."""
    return {
        p: p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock" and p.parent.name not in ("logs", "queues")
    }


def records(study, folder):
    return [RunStore(folder, run) for run in declared(str(study)).runs]


def workers_of(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def under_way(study, folder, steps=100):
    """Whether a cell has come so far and is not done."""
    return any(r.status()["step"] >= steps and r.status()["state"] == "running" for r in records(study, folder))


def test_a_mesh_larger_than_the_machine_fails_no_cell(tmp_path):
    """By the engine, whose workers find out, and by a worker alone: a line, exit code 2, and the cells are as they were."""
    (tmp_path / "three.py").write_text(STUDY)
    line = "a mesh of data=4,fsdp=1,tensor=1 needs 4 devices, there are 1 cpu device: ask for fewer\n"
    done = sweep(tmp_path / "three.py", tmp_path / "out", "--mesh", "data=4")
    assert (done.returncode, done.stderr.splitlines(keepends=True)[-1]) == (2, f"dit sweep: {line}")
    alone = [sys.executable, "-m", "dit", "worker", "--study", str(tmp_path / "out"), "--mesh", "data=4"]
    done = subprocess.run(alone, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (2, f"dit worker: {line}")
    assert {row["status"] for row in status_rows(Ledger(tmp_path / "out"))} == {"planned"}


def test_a_sweep_runs_every_cell_and_says_so(study, whole):
    out, done = whole
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.splitlines()[-1] == "3 of 3 done"
    for record in records(study, out):
        assert f"{record.run.run} done; " in done.stderr
        assert record.is_done()
        assert record.status()["attempt"] == 1
        assert [row["step"] for row in record.metrics()] == [50, 100, 150, 200, 250, 300]
    table = results(out)
    assert len(table) == 6
    assert table["fd_digits"].notna().all()
    assert set(table["status"]) == {"done"}


def test_running_again_does_nothing_and_starts_no_worker(study, whole):
    before = times(whole[0])
    began = time.monotonic()
    again = sweep(study, whole[0])
    assert (again.returncode, again.stderr) == (0, "3 of 3 done\n")
    assert (
        time.monotonic() - began < 10
    )  # under two on a quiet machine; starting a worker alone takes longer than this allows
    assert times(whole[0]) == before


def test_when_the_sweep_is_killed_its_workers_go_and_it_resumes_to_the_same_table(study, whole, tmp_path):
    out = tmp_path / "out"
    with started(command(study, out), subprocess.DEVNULL) as parent:
        wait_for(lambda: under_way(study, out))
        workers = workers_of(parent)
        assert len(workers) == 2
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not any(map(alive, workers)), seconds=20)
    assert not all(record.is_done() for record in records(study, out))
    resumed = sweep(study, out)
    assert (resumed.returncode, resumed.stderr.splitlines()[-1]) == (0, "3 of 3 done"), resumed.stderr
    assert any(record.status()["attempt"] == 2 for record in records(study, out))
    assert_frame_equal(results(out), results(whole[0]), check_exact=True)
    for cut, straight in zip(records(study, out), records(study, whole[0]), strict=True):
        assert [without_speed(row) for row in cut.metrics()] == [without_speed(row) for row in straight.metrics()]


def without_speed(row):
    return {name: value for name, value in row.items() if name not in TIMINGS}


def test_a_killed_worker_is_replaced_and_its_cell_resumes(study, whole, tmp_path):
    out = tmp_path / "out"
    line = command(study, out, "--where", "seed == 1")
    with started(line, subprocess.PIPE) as parent:
        wait_for(lambda: under_way(study, out))
        (worker,) = workers_of(parent)
        os.kill(worker, signal.SIGKILL)
        _, err = parent.communicate(timeout=300)
    record = records(study, out)[1]
    assert parent.returncode == 0
    assert f"died: {record.run.run}: worker died (exit code -9)" in err
    assert err.splitlines()[-1] == "1 of 1 done"
    assert record.status()["attempt"] == 2
    assert os.listdir(out / "runs") == [record.run.run], "only the chosen cell may be run"
    expected = results(whole[0]).query("seed == 1").reset_index(drop=True)
    assert_frame_equal(results(out), expected, check_exact=True)
    assert len(load_study(out).runs) == 3


def test_a_grown_study_runs_only_its_new_cells_and_a_failing_one_is_a_row(study, whole, tmp_path):
    out, grown = tmp_path / "out", tmp_path / "mine.py"
    shutil.copytree(whole[0], out)
    grown.write_text(GROWN)
    before = {path: written for path, written in times(out).items() if path.parent != out}
    done = sweep(grown, out)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == f"4 of 5 done, 1 failed (see dit status {out})"
    assert before.items() <= times(out).items()
    table = results(out)
    (failed,) = table.query("status == 'failed'").to_dict("records")
    assert (failed["seed"], failed["run"]) == (4, records(grown, out)[4].run.run)
    assert failed["reason"].startswith("not finite at step ")
    assert failed["reason"] in done.stderr
    assert len(table.query("status == 'done'")) == 8

    before = times(out)
    again = sweep(grown, out)
    assert (again.returncode, times(out)) == (3, before)
    assert "1 failed before and were left so: --retry-failed runs them again" in again.stderr
    assert sweep(grown, out, "--retry-failed").returncode == 3
    assert [record.status()["attempt"] for record in records(grown, out)] == [1, 1, 1, 1, 2]
    again = records(grown, out)[4].path
    assert {path for path in before if times(out)[path] != before[path]} == {again / "status.json"}


def test_two_sweeps_share_a_folder_and_train_each_cell_once(study, whole, tmp_path):
    out = tmp_path / "out"
    with started(command(study, out), subprocess.PIPE) as one, started(command(study, out), subprocess.PIPE) as two:
        last = [parent.communicate(timeout=600)[1].splitlines()[-1] for parent in (one, two)]
        assert (one.returncode, two.returncode) == (0, 0)
    assert all("of 3 done" in line for line in last)
    assert "3 of 3 done" in last
    for record in records(study, out):
        assert [attempt.ended for attempt in attempts(run_files(record.path))] == ["done"]
    assert_frame_equal(results(out), results(whole[0]), check_exact=True)


def test_a_cell_that_another_worker_holds_is_left_to_it(study, tmp_path):
    out = tmp_path / "out"
    save_study(out, declared(str(study)))
    first = records(study, out)[0]
    with claim(run_files(first.path), first.run.run, Observer(), lease_s=6.0):
        done = sweep(study, out, "--where", "seed == 0")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "0 of 1 done, 1 with other workers")
    assert "died" not in done.stderr


def test_a_cell_that_takes_every_worker_with_it_is_failed(study, tmp_path):
    """A run folder whose samples cannot be made ends its worker from within: three times are enough."""
    out = tmp_path / "out"
    killing = study.with_name("killing.py")
    killing.write_text(study.read_text())
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys, os, signal\n"
        "if 'worker' in sys.argv:\n"
        "    import dit.store.study\n"
        "    dit.store.study.RunStore.create = lambda record: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', '')}"}
    done = sweep(killing, out, "--where", "seed == 0", env=environment)
    first = records(killing, out)[0]
    assert done.returncode == 3
    assert done.stderr.count(f"died: {first.run.run}: worker died (exit code -9)") == 3
    reason = "its worker died 3 times without coming further, last with exit code -9"
    assert first.status()["reason"] == reason
    assert f"failed: {first.run.run}: {reason}" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("0 of 1 done, 1 failed")


def test_sigterm_saves_every_cell_and_exits_with_75(study, whole, tmp_path):
    out = tmp_path / "out"
    with started(command(study, out), subprocess.PIPE) as parent:
        wait_for(lambda: under_way(study, out))
        parent.send_signal(signal.SIGTERM)
        _, err = parent.communicate(timeout=300)
    assert parent.returncode == 75
    assert err.splitlines()[-1].endswith("stopped, and saved: sweep again to go on")
    states = [cell.state for cell in Ledger(out).cells()]
    assert set(states) <= {"retryable", "planned", "done"}
    assert "retryable" in states
    assert sweep(study, out).returncode == 0
    assert_frame_equal(results(out), results(whole[0]), check_exact=True)


def test_the_status_tells_each_cells_best_score(study, whole):
    first = status_rows(Ledger(whole[0]))[0]
    folder = whole[0] / "runs" / first["run"] / "evals"
    scores = [read_evaluation(path)["scores"]["fd_digits"] for path in folder.iterdir()]
    assert (first["fd_digits"], first["status"]) == (min(scores), "done")


def test_accelerators_are_divided_and_never_shared(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.setattr(devices, "DEV", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert default_workers() == 8
    for name in ("nvidia10", "nvidia0", "nvidia9", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert default_workers() == 4
    two = devices.shares(2)
    assert [share.environment for share in two] == [{"CUDA_VISIBLE_DEVICES": "0,9"}, {"CUDA_VISIBLE_DEVICES": "1,10"}]
    assert two[0].cpus == tuple(range(0, 32, 2))
    assert devices.shares(1)[0].environment == {}
    with pytest.raises(UserError, match="--workers 5: expected at most one per accelerator, this machine has 4 GPUs"):
        devices.shares(5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7,GPU-9")
    assert [share.environment for share in devices.shares(2)] == [
        {"CUDA_VISIBLE_DEVICES": "GPU-7"},
        {"CUDA_VISIBLE_DEVICES": "GPU-9"},
    ]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert (default_workers(), devices.shares(2)[0].environment) == (8, {})


def test_a_hosts_tpu_chips_are_one_workers_unless_they_are_asked_for_one_by_one(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(devices, "DEV", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert default_workers() == 2
    for number in range(4):
        (tmp_path / f"accel{number}").touch()
    assert (default_workers(), devices.shares(1)[0].environment) == (1, {})
    assert [share.environment["TPU_VISIBLE_CHIPS"] for share in devices.shares(4)] == ["0", "1", "2", "3"]
