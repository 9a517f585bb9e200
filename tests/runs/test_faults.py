"""Real cells under faults: workers killed at random and between any two files, bad bytes, full and read-only disks, gangs.

Each ends with the table equal to the undisturbed one, bit for bit, with no row lost and none counted twice.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import worker_processes
from worker_processes import SCRIPT, Nursery, attempts_of, ended, fake_cells, gang, holdings, line, wait_for

from dit.design.config import RunArguments
from dit.errors import UserError
from dit.runs.run import reason_of
from dit.store.study import RunStore
from sweeps import arguments
from sweeps.engines import local
from sweeps.ledger import Ledger

RUNS = fake_cells(12)


def make_study(folder, runs):
    """A study whose evaluations take four batches."""
    arguments.save(worker_processes.make_study(folder, runs), RunArguments(sample_batch_size=4))
    return folder


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    """Where workers come from."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery") / "log")
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """What four cells hold when nothing disturbs them."""
    folder = make_study(tmp_path_factory.mktemp("whole"), RUNS[:4])
    resume(nursery, folder)
    return folder, holdings(folder)


def of(whole, runs):
    """The part of those runs."""
    table, rows, ends = whole[1]
    names = {run.run for run in runs}
    return (
        [row for row in table if row["run"] in names],
        {name: rows[name] for name in rows if name in names},
        {name: ends[name] for name in ends if name in names},
    )


def resume(nursery, folder):
    """A worker to the end of it."""
    assert nursery.wait(nursery.start(folder)) == 0, nursery.log.read_text()


POINTS = [
    "claim:after:1",
    "status:before:1",
    "row:torn:2",
    "row:after:4",
    "checkpoint:before:1",
    "checkpoint:after:1",
    "average:before:1",
    "average:after:1",
    "drawn:before:1",
    "drawn:after:2",
    "samples:before:1",
    "samples:after:1",
    "evaluation:before:1",
    "evaluation:after:1",
    "status:after:4",
]


@pytest.mark.long
def test_workers_killed_between_any_two_files_cost_nothing(nursery, whole, tmp_path):
    """One after another over the same cells: each dies at its point, the next takes up what it left."""
    folder, runs = make_study(tmp_path / "study", RUNS[:4]), RUNS[:4]
    for point in POINTS:
        code = nursery.wait(nursery.start(folder, crash=point))
        assert code == -signal.SIGKILL, (point, code, nursery.log.read_text())
        if point == "drawn:after:2":  # what is known of two batches is there until the score is
            assert list(folder.rglob("drawn/*.part"))
        for run in runs:
            Ledger(folder).retry(run)  # three deaths in a row without a checkpoint are a failure: a person says go on
    resume(nursery, folder)
    assert holdings(folder) == of(whole, runs)
    assert not list(folder.rglob("drawn/*.part"))
    assert sum(not one.ended for run in runs for one in attempts_of(folder, run)) == len(POINTS)


KILLS = 100


@pytest.mark.long
def test_a_hundred_random_kills_across_twelve_cells_cost_nothing(nursery, tmp_path):
    """Two workers at a time, killed together: while they start, or at a random moment after one of them has logged a row."""
    runs = fake_cells(12, steps=400)
    straight, folder = (make_study(tmp_path / name, runs) for name in ("straight", "study"))
    resume(nursery, straight)
    ledger, rng, dead = Ledger(folder), random.Random(7), 0

    def rows():
        return [os.stat(path).st_size for path in sorted(folder.glob("runs/*/metrics/*.jsonl"))]

    while dead < KILLS:
        for cell in ledger.cells():
            ledger.retry(cell.run)
        stand, alive = rows(), [nursery.start(folder, "--lease", "30") for _ in range(2)]
        if rng.random() < 0.75:
            wait_for(lambda: rows() != stand or nursery.codes.keys() & set(alive))  # noqa: B023
            time.sleep(rng.uniform(0, 0.1))
        else:
            time.sleep(rng.uniform(0, 1.0))
        for pid in alive:
            if pid not in nursery.codes:
                os.kill(pid, signal.SIGKILL)
        codes = [nursery.wait(pid) for pid in alive]
        assert codes == [-signal.SIGKILL] * 2, "most of the study must be under fire"
        dead += 2
    for cell in ledger.cells():
        ledger.retry(cell.run)
    states = Counter(cell.state for cell in ledger.cells())
    resume(nursery, folder)
    assert holdings(folder) == holdings(straight)
    print(
        f"{dead} workers killed in {sum(len(attempts_of(folder, run)) for run in runs)} attempts; cells then: {dict(states)}"
    )


def flip(path):
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    """The second half gone."""
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.long
@pytest.mark.parametrize("damage", [flip, cut, os.remove])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(nursery, whole, tmp_path, damage):
    folder = make_study(tmp_path / "study", RUNS[:1])
    assert nursery.wait(nursery.start(folder, crash="checkpoint:after:3")) == -signal.SIGKILL
    newest = max((RunStore(folder, RUNS[0]).path / "checkpoints").glob("[0-9]*"))
    damage(max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size))
    before = nursery.log.read_text()
    resume(nursery, folder)
    told = nursery.log.read_text()[len(before) :]
    assert f"the checkpoint of step {int(newest.name)} is corrupt and was set aside" in told
    assert newest.with_name(f"{newest.name}.corrupt-0").is_dir()
    assert holdings(folder) == of(whole, RUNS[:1])


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, that can be made small, larger and read-only."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        return subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)

    made = mount(["-t", "tmpfs", "-o", "size=700k", "tmpfs"])
    if made.returncode:
        pytest.skip(f"no permission to mount a disk: {made.stderr.strip()}")
    yield SimpleNamespace(path=place, change=lambda options: mount(["-o", f"remount,{options}"]))
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def sweep(folder, *options):
    """`dit worker` until it ends, and what it said."""
    done = subprocess.run(line(folder, *options), capture_output=True, text=True, timeout=600)
    return done.returncode, done.stderr


@pytest.mark.long
def test_a_full_disk_is_named_keeps_what_was_there_and_goes_on_when_there_is_room(nursery, whole, small_disk):
    folder = make_study(small_disk.path / "study", RUNS[:2])
    code, said = sweep(folder)
    assert code in (2, 3), said
    assert "disk is full" in said or "No space left on device" in said
    assert any(
        "disk is full" in line or "No space left" in line for line in said.splitlines() if line.startswith("failed: ")
    )
    scores = sorted(folder.rglob("evals/*.json"))
    kept = {path: path.read_bytes() for path in scores}
    small_disk.change("size=64m")
    for run in RUNS[:2]:
        Ledger(folder).retry(run)
    resume(nursery, folder)
    assert holdings(folder) == of(whole, RUNS[:2])
    assert {path: path.read_bytes() for path in scores} == kept
    assert [path for path in folder.rglob(".*") if path.name != ".lock"] == [], "nothing half written takes up room"


@pytest.mark.slow
def test_a_read_only_folder_is_one_clear_line(small_disk, tmp_path):
    folder = make_study(small_disk.path / "study", RUNS[:1])
    small_disk.change("ro")
    code, said = sweep(folder)
    assert (code, said.count("\n")) == (2, 1), said
    assert os.strerror(errno.EROFS) in said
    study = tmp_path / "study.py"
    study.write_text("from worker_processes import fake_cells\ndef runs(): return list(fake_cells(2))\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.path.dirname(SCRIPT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "dit", "sweep", str(study), "--out", str(folder.parent / "other")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert os.strerror(errno.EROFS) in done.stderr


@pytest.mark.long
def test_a_stopped_worker_that_wakes_cannot_write(nursery, whole, tmp_path):
    """SIGSTOP in the middle of training for longer than its lease; it wakes when another has done the cell."""
    folder = make_study(tmp_path / "study", RUNS[:1])
    sleeper = nursery.start(folder, "--lease", "2")
    wait_for(lambda: RunStore(folder, RUNS[0]).metrics())
    os.kill(sleeper, signal.SIGSTOP)
    assert nursery.wait(nursery.start(folder, "--lease", "2")) == 0
    assert RunStore(folder, RUNS[0]).is_done()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    os.kill(sleeper, signal.SIGCONT)
    assert nursery.wait(sleeper) == 0
    assert "attempt 1 has lost its lease: attempt 2 holds the run" in nursery.log.read_text()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert holdings(folder) == of(whole, RUNS[:1])


@pytest.mark.long
def test_eight_workers_racing_for_four_cells_train_each_once(nursery, whole, tmp_path):
    folder = make_study(tmp_path / "study", RUNS[:4])
    racers = [nursery.start(folder, "--lease", "30") for _ in range(8)]
    assert [nursery.wait(racer) for racer in racers] == [0] * 8
    assert all([one.ended for one in attempts_of(folder, run)] == ["done"] for run in RUNS[:4])
    assert holdings(folder) == of(whole, RUNS[:4])


@pytest.mark.long
def test_two_hosts_work_on_cells_as_one_and_a_lost_one_costs_nothing(tmp_path):
    """`--distributed`: process 0 claims; the other is killed, the group ends, and a new one goes on to what an undisturbed one has."""

    straight = make_study(tmp_path / "straight", RUNS[:2])
    with ended(*gang(straight)) as processes:
        assert [process.wait(timeout=1200) for process in processes] == [0, 0]
    assert all([one.ended for one in attempts_of(straight, run)] == ["done"] for run in RUNS[:2])

    folder = make_study(tmp_path / "study", RUNS[:2])
    with ended(*gang(folder)) as (leader, follower):
        wait_for(lambda: any(RunStore(folder, run).metrics() for run in RUNS[:2]))
        follower.kill()
        wait_for(lambda: leader.poll() is not None or time.sleep(0.5), 200)
    with ended(*gang(folder)) as processes:
        assert [process.wait(timeout=1200) for process in processes] == [0, 0]
    assert holdings(folder) == holdings(straight)


def test_a_death_for_want_of_memory_is_told_from_others(monkeypatch):
    counts = iter([3, 4, 3, 3])
    monkeypatch.setattr(local, "out_of_memory_kills", lambda: next(counts))
    for expected in ("exit code -9: killed by the system, which was out of memory", "exit code -9"):
        process = object.__new__(local.Process)
        process.kills = local.out_of_memory_kills()
        process.process = SimpleNamespace(wait=lambda: -signal.SIGKILL)
        assert process.how_it_ended() == expected


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory: MemoryError:"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
            "out of memory: RuntimeError: RESOURCE_EX",
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: no space\nleft"), "RuntimeError: RESOURCE_EXHAUSTED: no space left"),
        (UserError("no such\nfile"), "no such file"),
    ],
)
def test_a_reason_is_one_line_and_tells_want_of_memory_from_the_rest(error, reason):
    assert reason_of(error).startswith(reason)
