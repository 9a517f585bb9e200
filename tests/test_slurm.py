"""The Slurm engine: what it asks for, with commands of its own in Slurm's place, and whole sweeps on a real Slurm on this machine."""

import argparse
import os
import shlex
import subprocess
import sys

import pytest
from cluster_study import by_the_local_engine, command, environment, records, table, wait_for
from pandas.testing import assert_frame_equal
from slurm_cluster import missing, slurm

from dit.errors import UserError
from dit.store import read_json
from sweeps import engines
from sweeps.engine import GONE, PENDING, RUNNING, CellTask, Resources
from sweeps.engines.slurm import SlurmEngine, check, resources, script

needs_slurm = pytest.mark.skipif(bool(missing()), reason=missing() or "Slurm is here")


def parsed(*options):
    parser = argparse.ArgumentParser()
    engines.declare(parser)
    return parser.parse_args(options)


class Run:
    """As much of a run as its needs depend on."""

    run = "a-cell"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Slurm's commands as scripts: each notes its arguments and what it is given, then answers with a prepared file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        path = folder / name
        path.write_text(
            "#!/bin/sh\n"
            f'cd {shlex.quote(str(folder))}; printf "%s\\n" "$@" > {name}.args\n'
            f"[ {name} = sbatch ] && cat > sbatch.script\n"
            f"cat {name}.says 2>/dev/null; cat {name}.error >&2 2>/dev/null; [ ! -e {name}.error ]\n"
        )
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (folder / "sbatch.says").write_text("17\n")
    return folder


def engine(folder, heard=None, **options):
    return SlurmEngine(folder, (heard if heard is not None else []).append, poll_s=0.0, **options)


def test_a_job_runs_the_command_on_every_host_and_requeues_itself_once_saved(tmp_path):
    """The script itself, with `srun` a script that runs what it is given; a hostile word stays one word."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/srun.args\nexit $CODE\n')
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol.args\n')
    for name in ("srun", "scontrol"):
        (folder / name).chmod(0o755)
    hostile = ["dit", "worker", "--study", "/a b/$(touch hacked)'\"; rm -rf x #"]
    for code in (0, 3, 75):
        env = {"PATH": f"{folder}:{os.environ['PATH']}", "CODE": str(code), "SLURM_JOB_ID": "5"}
        done = subprocess.run(
            ["sh"], input=script(hostile, Resources(cpus_per_host=4)), env=env, text=True, cwd=tmp_path
        )
        assert done.returncode == code
        assert (folder / "scontrol.args").exists() == (code == 75)
    assert (folder / "srun.args").read_text().splitlines() == ["--kill-on-bad-exit=1", "--cpus-per-task=4", *hostile]
    assert (folder / "scontrol.args").read_text() == "requeue 5\n"
    assert not list(tmp_path.rglob("hacked"))


def test_options_come_from_the_study_and_the_command_line_wins(fake, tmp_path):
    def declared(run):
        return {"hosts": 2, "chips_per_host": 8, "slurm": {"partition": "gpu", "time": "1:00:00", "exclusive": ""}}

    asked = resources(parsed("--partition", "big", "--memory-gb", "1.5", "--sbatch", "nice=10"), Run(), declared)
    out = tmp_path / "out 100%"
    engine(out).submit([CellTask("a-cell", ("python", "-m", "dit", "worker"), asked)])
    given = (fake / "sbatch.args").read_text().splitlines()
    for option in (
        "--partition=big",
        "--time=1:00:00",
        "--exclusive",
        "--nice=10",
        "--nodes=2",
        "--ntasks=2",
        "--mem=1536M",
    ):
        assert option in given
    assert "--gres=gpu:8" in given
    assert f"--output={tmp_path}/out 100%%/logs/slurm-a-cell-%j.log" in given
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=1 python -m dit worker" in (fake / "sbatch.script").read_text()
    assert read_json(out / "queues" / "slurm.json")["cells"] == {"a-cell": "17"}


def test_jobs_of_an_earlier_sweep_are_taken_over_and_those_of_other_folders_are_not(fake, tmp_path):
    one, other = engine(tmp_path / "one"), engine(tmp_path / "other")
    (fake / "squeue.says").write_text(f"8|RUNNING|{one._prefix}a-cell\n9|PENDING|{other._prefix}b-cell\nnonsense\n")
    tasks = [CellTask(cell, ("true",)) for cell in ("a-cell", "b-cell")]
    one.submit(tasks[:1])
    assert not (fake / "sbatch.args").exists()
    one.submit(tasks)
    assert f"--job-name={one._prefix}b-cell" in (fake / "sbatch.args").read_text().splitlines()
    assert one.detail("a-cell") == ""
    one.cancel(["a-cell"])
    assert (fake / "scancel.args").read_text() == "8\n"


def test_what_vanished_is_gone_and_slurm_is_asked_how(fake, tmp_path):
    heard = []
    sut = engine(tmp_path, heard)
    sut.submit([CellTask("a-cell", ("true",))])
    (fake / "squeue.says").write_text(f"17|COMPLETING|{sut._prefix}a-cell\n")
    assert sut.poll() == {"a-cell": RUNNING}
    (fake / "squeue.says").write_text("")
    (fake / "scontrol.says").write_text("JobId=17 JobState=CANCELLED Reason=None ExitCode=0:15\n")
    assert sut.poll() == {"a-cell": GONE}
    assert heard == [
        {"event": "died", "run": "a-cell", "worker": "a-cell", "how": "Slurm job 17 CANCELLED, exit code 0:15"}
    ]
    assert not (tmp_path / "queues" / "slurm.json").exists()
    (fake / "scontrol.says").write_text("JobId=17 JobState=FAILED ExitCode=3:0\n")
    assert sut.detail("a-cell") == ""  # its cell failed; the worker did not


def test_a_silent_controller_is_waited_for_and_said_once(fake, tmp_path):
    heard = []
    sut = engine(tmp_path, heard)
    sut.submit([CellTask("a-cell", ("true",))])
    (fake / "squeue.error").write_text("slurm_load_jobs error: Unable to contact slurm controller\n")
    assert [sut.poll(), sut.poll()] == [{"a-cell": PENDING}] * 2
    assert [event["event"] for event in heard] == ["warning"]
    assert "Unable to contact" in heard[0]["message"]


def test_jobs_wait_for_room_in_the_queue(fake, tmp_path):
    heard = []
    sut = engine(tmp_path, heard, max_jobs=1)
    sut.submit([CellTask(cell, ("true",)) for cell in ("a-cell", "b-cell")])
    assert sut.poll() == {"a-cell": GONE, "b-cell": PENDING}  # the queue was empty again, which made room
    assert f"--job-name={sut._prefix}b-cell" in (fake / "sbatch.args").read_text().splitlines()
    (fake / "sbatch.error").write_text("sbatch: error: AssocMaxSubmitJobLimit\n")
    (fake / "sbatch.error").write_text("sbatch: error: Batch job submission failed: Job violates (job submit limit)\n")
    sut.submit([CellTask("a-cell", ("true",))])
    sut.poll()
    assert sut.poll()["a-cell"] == PENDING
    assert "trying again" in heard[-1]["message"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sbatch", "job-name=x"], "'job-name'"),
        (["--sbatch", "-p gpu"], "'-p gpu'"),
        (["--hosts", "0"], "hosts is 0 in the command line"),
        (["--memory-gb", "nan"], "memory_gb is nan"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        resources(parsed(*options), Run())


@pytest.mark.parametrize("value", [{"gpus": 1}, ["hosts"], {"hosts": "two"}, {"slurm": "gpu"}, {"slurm": {"o p": 1}}])
def test_what_a_study_may_not_ask_for_is_named(value):
    with pytest.raises(UserError, match=r"a-cell|sbatch option"):
        resources(parsed(), Run(), lambda run: value)


def test_refusals_are_one_line(fake, tmp_path, monkeypatch):
    (fake / "sbatch.error").write_text(
        "sbatch: error: invalid partition\nsbatch: error: Batch job submission failed: no\n"
    )
    with pytest.raises(UserError, match="sbatch refused the job of a-cell: Batch job submission failed: no"):
        engine(tmp_path).submit([CellTask("a-cell", ("true",))])
    with pytest.raises(UserError, match="no run's name"):
        engine(tmp_path).submit([CellTask("../a", ("true",))])
    (fake / "squeue.error").write_text("squeue: fatal: Could not establish a configuration source\n")
    with pytest.raises(UserError, match="Slurm does not answer here: Could not establish"):
        check(parsed())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no squeue on this machine"):
        engine(tmp_path).submit([CellTask("a-cell", ("true",))])


@pytest.mark.long
@needs_slurm
def test_a_sweep_on_slurm_survives_a_cancelled_job(tmp_path):
    """Three cells on two virtual nodes; one job is cancelled under way, resubmitted, and the table is the local engine's."""
    study, local = by_the_local_engine(tmp_path)
    out = tmp_path / "out"
    options = ["--engine", "slurm", "--poll-every", "1", "--python", sys.executable]
    with slurm(**environment()) as settings, open(tmp_path / "said", "wb") as said:
        with subprocess.Popen(command(study, out, *options), env=settings, stderr=said) as sweep:
            wait_for(lambda: out.exists() and any(100 <= r.status()["step"] < 300 for r in records(out)))
            victim = next(r for r in records(out) if 100 <= r.status()["step"] < 300)
            number = read_json(out / "queues" / "slurm.json")["cells"][victim.run.run]
            subprocess.run(["scancel", number], env=settings, check=True)
            assert sweep.wait(timeout=240) == 0, (tmp_path / "said").read_text()
        again = subprocess.run(command(study, out, *options), env=settings, capture_output=True, text=True, timeout=60)
        assert (again.returncode, again.stderr) == (0, "3 of 3 done\n")
    text = (tmp_path / "said").read_text()
    assert f"died: {victim.run.run}: worker died (Slurm job {number} CANCELLED, " in text
    assert len(list((out / "logs").glob(f"slurm-{victim.run.run}-*.log"))) == 2
    assert victim.status()["attempt"] == 2
    assert_frame_equal(table(out), table(local), check_exact=True)
