"""The Slurm engine: what it asks for, with commands of its own in Slurm's place, and whole sweeps on a real Slurm on this machine."""

import argparse
import os
import pickle
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_study import (
    assert_is_near,
    by_the_local_engine,
    command,
    environment,
    records,
    running,
    story,
    table,
    wait_for,
)
from pandas.testing import assert_frame_equal
from slurm_cluster import missing, slurm

from dit.errors import UserError
from dit.store.study import read_json
from sweeps import engines
from sweeps.engine import GONE, PENDING, RUNNING, CellTask, Resources
from sweeps.engines import slurm_jobs
from sweeps.engines.slurm import SlurmEngine, check, resources

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
    """Slurm's commands as scripts: each notes its arguments and the script it is given, then answers with a prepared file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel", "srun"):
        path = folder / name
        path.write_text(
            "#!/bin/sh\n"
            f'cd {shlex.quote(str(folder))}; printf "%s\\n" "$@" > {name}.args\n'
            f'[ {name} = sbatch ] && cat "$1" > sbatch.script\n'
            f"cat {name}.says 2>/dev/null; cat {name}.error >&2 2>/dev/null; [ ! -e {name}.error ]\n"
        )
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    (folder / "sbatch.says").write_text("Submitted batch job 17\n")
    return folder


def asked_for(fake):
    """The options in the script that sbatch was given last, as it reads them."""
    lines = (fake / "sbatch.script").read_text().splitlines()
    return [shlex.split(line.removeprefix("#SBATCH "))[0] for line in lines if line.startswith("#SBATCH ")]


def engine(folder, heard=None, **options):
    return SlurmEngine(folder, (heard if heard is not None else []).append, poll_s=0.0, **options)


SRUN = """#!/bin/sh
printf "%s\\n" "$@" > {folder}/srun.args
while [ "${{1#--}}" != "$1" ]; do [ "$1" = --output ] && shift; shift; done
SLURM_PROCID=0 exec "$@"
"""


def test_a_job_turns_into_the_command_and_requeues_itself_once_saved(fake, tmp_path):
    """The script itself, with an `srun` that runs what it is given: exit codes are the command's, and a hostile word stays one word."""
    (fake / "srun").write_text(SRUN.format(folder=fake))
    hostile = "/a b/$(touch hacked)'\"; rm -rf x #\n`touch hacked`"
    out = tmp_path / "o $(touch hacked) '\" 100%"
    code = "import os, sys; print(os.getpid(), sys.argv[1:]); sys.exit(int(os.environ['CODE']))"
    engine(out).submit([CellTask("a-cell", (sys.executable, "-c", code, hostile), Resources(cpus_per_host=4))])
    for code in (0, 3, 75):
        env = {**os.environ, "CODE": str(code), "SLURM_JOB_ID": "17", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            ["sh", "-c", 'echo $$; exec sh "$0"', fake / "sbatch.script"], env=env, cwd=tmp_path, capture_output=True
        )
        assert done.returncode == code, done
        assert (fake / "scontrol.args").exists() == (code == 75)
        assert done.stdout.decode().splitlines()[-1].partition(" ")[2] == str([hostile])
    steps = (fake / "srun.args").read_text().splitlines()
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=4", "--open-mode=append"} <= set(steps)
    assert f"--output={str(out).replace('%', '%%')}/logs/slurm-a-cell-%j.log" in steps
    assert f"--output={str(out).replace('%', '%%')}/logs/slurm-a-cell-%j.log" in asked_for(fake)
    assert (fake / "scontrol.args").read_text() == "requeue\n17\n"
    assert not list(tmp_path.rglob("hacked"))


class Evil:
    """A pickle that does something."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_a_job_unpickles_nothing_but_what_its_submission_wrote(fake, tmp_path):
    """A study's folder full of pickles changes nothing; the job's own are the user's alone, or it does not start."""
    out, evil = tmp_path / "out", pickle.dumps(Evil(tmp_path / "hacked"))
    for folder in (out, out / "slurm", out / "logs", out / "queues"):
        folder.mkdir(exist_ok=True)
        for name in ("17_submitted.pkl", "17_0_result.pkl", "a.pkl"):
            (folder / name).write_bytes(evil)
    (fake / "srun").write_text(SRUN.format(folder=fake))
    (tmp_path / "cache" / "slurm").mkdir(parents=True)
    (tmp_path / "cache" / "slurm").chmod(0o2770)  # as on storage that a group shares: folders in it inherit the bit
    engine(out).submit([CellTask("a-cell", (sys.executable, "-c", "print('said')"))])
    (job,) = (tmp_path / "cache" / "slurm").glob("*/*")
    assert stat.S_IMODE(job.stat().st_mode) == 0o700
    assert not list(out.rglob("*_submission.sh"))
    env = {**os.environ, "SLURM_JOB_ID": "17", "PYTHONPATH": os.pathsep.join(sys.path)}

    def run():
        return subprocess.run(["sh", fake / "sbatch.script"], env=env, capture_output=True, text=True, cwd=out)

    done = run()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "said"), done
    (job / "17_submitted.pkl").write_bytes(evil)
    job.chmod(0o770)
    done = run()
    assert (done.returncode, done.stdout) == (2, f"{job} is not a folder of yours with mode 0700\n")
    assert not (tmp_path / "hacked").exists()


def test_folders_of_jobs_go_when_these_have_left_the_queue(fake, tmp_path):
    sut = engine(tmp_path / "out")
    sut.submit([CellTask("a-cell", ("true",))])
    (job,) = (tmp_path / "cache" / "slurm").glob("*/*")
    slurm_jobs.tidy(job.parent, {"18"})
    assert job.exists()  # another host may have submitted it since the queue was looked at
    os.utime(job, (0, 0))
    (fake / "squeue.says").write_text(f"17|PENDING|{sut._prefix}a-cell\n")
    engine(tmp_path / "out").submit([CellTask("a-cell", ("true",))])
    assert job.exists()
    (fake / "squeue.says").write_text("")
    slurm_jobs.tidy(job.parent, {"18"})
    assert not job.exists()


def test_options_come_from_the_study_and_the_command_line_wins(fake, tmp_path):
    def declared(run):
        slurm = {"partition": "gpu", "time": "1:00:00", "exclusive": "", "ntasks-per-node": "2", "comment": "a\\b 'c'"}
        return {"hosts": 2, "chips_per_host": 8, "slurm": slurm}

    asked = resources(parsed("--partition", "big", "--memory-gb", "1.5", "--sbatch", "nice=10"), Run(), declared)
    out = tmp_path / "out 100%"
    engine(out).submit([CellTask("a-cell", ("python", "-m", "dit", "worker"), asked)])
    given = asked_for(fake)
    for option in (
        "--partition=big",
        "--time=1:00:00",
        "--exclusive",
        "--nice=10",
        "--nodes=2",
        "--ntasks=2",
        "--mem=1536M",
        "--ntasks-per-node=2",
        "--requeue",
        "--signal=TERM@120",
        "--comment=a\\\\b 'c'",  # sbatch takes the backslash for an escape
    ):
        assert option in given
    assert len({option.partition("=")[0] for option in given}) == len(given)
    assert not [option for option in given if option.startswith(("--wckey", "--error"))]
    assert "--gres=gpu:8" in given
    assert f"--output={tmp_path}/out 100%%/logs/slurm-a-cell-%j.log" in given
    (pickled,) = (tmp_path / "cache" / "slurm").glob("*/*/17_submitted.pkl")
    with open(pickled, "rb") as file:
        assert pickle.load(file).function == slurm_jobs.Command(("python", "-m", "dit", "worker"))
    engine(out, python="/opt/dit/bin/python").submit([CellTask("b-cell", ("python", "-m", "dit"), asked)])
    assert " /opt/dit/bin/python -u -m submitit.core._submit " in (fake / "sbatch.script").read_text()
    assert read_json(out / "queues" / "slurm.json")["cells"] == {"b-cell": "17"}


def test_jobs_of_an_earlier_sweep_are_taken_over_and_those_of_other_folders_are_not(fake, tmp_path):
    one, other = engine(tmp_path / "one"), engine(tmp_path / "other")
    (fake / "squeue.says").write_text(f"8|RUNNING|{one._prefix}a-cell\n9|PENDING|{other._prefix}b-cell\nnonsense\n")
    tasks = [CellTask(cell, ("true",)) for cell in ("a-cell", "b-cell")]
    one.submit(tasks[:1])
    assert not (fake / "sbatch.args").exists()
    one.submit(tasks)
    assert f"--job-name={one._prefix}b-cell" in asked_for(fake)
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
    assert f"--job-name={sut._prefix}b-cell" in asked_for(fake)
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
        (["--partition", "gpu\ntouch hacked"], r"'partition' is 'gpu\\ntouch hacked': expected one line"),
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


def test_refusals_are_one_line(fake, tmp_path, monkeypatch, capfd):
    (fake / "sbatch.error").write_text(
        "sbatch: error: invalid partition\nsbatch: error: Batch job submission failed: no\n"
    )
    with pytest.raises(UserError, match="sbatch refused the job of a-cell: Batch job submission failed: no"):
        engine(tmp_path).submit([CellTask("a-cell", ("true",))])
    assert capfd.readouterr().err == ""
    assert not list((tmp_path / "cache" / "slurm").glob("*/*"))
    with pytest.raises(UserError, match="expected a folder's name of one line"):
        engine(tmp_path / "a\nb")
    with pytest.raises(UserError, match="no run's name"):
        engine(tmp_path).submit([CellTask("../a", ("true",))])
    (fake / "squeue.error").write_text("squeue: fatal: Could not establish a configuration source\n")
    with pytest.raises(UserError, match="Slurm does not answer here: Could not establish"):
        check(parsed())
    with monkeypatch.context() as lacking:
        lacking.setattr(engines.slurm.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r'pip install "dit-scaling\[slurm\]"'):
            check(parsed())
    (fake / "squeue.error").unlink()
    (fake / "srun").unlink()
    if not missing():
        monkeypatch.setenv("PATH", f"{fake}:/nowhere")  # the commands' own shell is found by its path
        (fake / "squeue").write_text("#!/bin/sh\n")
    with pytest.raises(UserError, match=r"no sbatch or srun on this machine .*: run --engine slurm on a login node"):
        engine(tmp_path).submit([CellTask("a-cell", ("true",))])
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
        with running(command(study, out, *options), env=settings, stderr=said) as sweep:
            wait_for(
                lambda: out.exists() and any(100 <= r.status()["step"] < 300 for r in records(out)),
                240,
                sweep,
                lambda: (tmp_path / "said").read_text() + story(out),
            )
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


@pytest.mark.long
@needs_slurm
def test_a_job_on_two_nodes_that_is_told_to_stop_saves_and_goes_on_by_itself(tmp_path):
    """As before its time is up: SIGTERM to both processes, exit code 75, and the same job comes again with nobody on the login node."""
    study, local = by_the_local_engine(tmp_path, cells=1, steps=800)
    out = tmp_path / "out"
    options = ["--engine", "slurm", "--nodes", "2", "--detach", "--python", sys.executable]
    with slurm(**environment()) as settings:

        def ask(*line):
            return subprocess.run(line, env=settings, capture_output=True, text=True, check=True, timeout=60).stdout

        def about():
            return ask("scontrol", "show", "jobs") + story(out)

        ask(*command(study, out, *options))
        (record,) = records(out)
        wait_for(lambda: record.status()["step"] >= 100, 240, about=about)
        number = read_json(out / "queues" / "slurm.json")["cells"][record.run.run]
        ask("scancel", "--signal=TERM", number)
        wait_for(lambda: record.status()["state"] == "retryable", 120, about=about)
        assert record.status()["step"] < 800
        wait_for(record.is_done, 400, about=about)
        wait_for(lambda: ask("squeue", "--noheader") == "", 60, about=about)
        assert " Restarts=1 " in ask("scontrol", "show", "job", "--oneliner", number)
    assert record.status()["attempt"] == 2
    assert [path.name for path in (out / "logs").iterdir()] == [f"slurm-{record.run.run}-{number}.log"]
    assert [read_json(path)["processes"] for path in record.path.glob("environment-*.json")] == [2, 2]
    assert_is_near(out, local, record)
