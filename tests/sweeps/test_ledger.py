"""Cells through all their states, and workers that race, die, pause and hang over them: real processes, arithmetic in place of training."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from worker_processes import attempts_of, ended, fake, fake_cells, holdings, line, make_study, wait_for

from dit.store.lease import Attempt, Observer, claim, run_files
from dit.store.study import DONE, FAILED, RUNNING, MetricsWriter, RunStore, read_metrics, write_json
from sweeps import ledger as module
from sweeps.ledger import Ledger, stops_without_progress
from sweeps.queues import Queue

RUNS = fake_cells(12)


@pytest.fixture
def study(tmp_path):
    """A study of one cell."""
    return make_study(tmp_path / "study", RUNS[:1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What twelve cells hold when nothing disturbs them."""
    folder = make_study(tmp_path_factory.mktemp("whole"), RUNS)
    assert fake(folder).wait(timeout=120) == 0
    return holdings(folder)


def state(study):
    (cell,) = Ledger(study).cells()
    return cell.state


def lost(study, token, progress=(0, 0), ended=""):
    """An attempt of a process on this host that is gone."""
    gone = Attempt(token, {"host": "h", "boot": module.lease._boot(), "pid": 2**22 + 5, "started": "1"}, ended=ended)
    path = RunStore(study, RUNS[0]).path / "attempts" / f"{token:04d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gone.to_bytes())
    write_json(path, {**vars(gone), "progress": {"from": list(progress)}})


def score(study, evaluation):
    write_json(RunStore(study, RUNS[0]).evaluation_path(evaluation), {"row": {"fd_digits": 1.0}, "protocol": {}})


def test_a_cell_goes_through_its_states(study):
    assert state(study) == "planned"
    queue = Queue(study, "slurm", detached=True)
    queue.save({RUNS[0].run: "job 7"})
    assert state(study) == "queued"
    record = RunStore(study, RUNS[0])
    with Ledger(study).claim(RUNS[0]) as lease:
        assert state(study) == "running"
        record.set_status(RUNNING, step=60, attempt=1)
        assert state(study) == "trained"
        for evaluation in RUNS[0].evaluations:
            score(study, evaluation)
        assert state(study) == "evaluated"
        record.set_status(DONE, step=60, attempt=1)
        lease.end(DONE)
    assert state(study) == "done"
    queue.close()
    assert Ledger(study).claim(RUNS[0]) is None


def test_a_lost_cell_is_retryable_and_says_who_had_it(study):
    RunStore(study, RUNS[0]).set_status(RUNNING, step=20, attempt=1)
    lost(study, 1, (20, 0))
    (cell,) = Ledger(study).cells()
    assert (cell.state, cell.step, cell.reason) == ("retryable", 20, "lost with its worker (h:4194309)")


@pytest.mark.parametrize(("kind", "limit"), [("", 3), ("preempted", 30)])
def test_a_cell_that_costs_too_many_workers_without_coming_further_is_failed(study, kind, limit):
    RunStore(study, RUNS[0]).set_status(RUNNING, step=20, attempt=1)
    for token in range(1, limit):
        lost(study, token, (20, 0), kind)
    assert stops_without_progress(study, RUNS[0]) == (kind or "lost", limit - 1)
    with Ledger(study).claim(RUNS[0]) as lease:
        lease._ended = "as if never"  # leave it as it is
    lost(study, limit, (20, 0), kind)
    assert Ledger(study).claim(RUNS[0]) is None
    (cell,) = Ledger(study).cells()
    assert (cell.state, cell.attempts) == ("failed", limit + 1)
    assert cell.reason == f"{kind or 'lost'} {limit} times in a row without coming further than step 20"
    assert Ledger(study).retry(RUNS[0])
    with Ledger(study).claim(RUNS[0]) as lease:
        assert lease.token == limit + 2


def test_deaths_that_bring_a_cell_further_do_not_count(study):
    RunStore(study, RUNS[0]).set_status(RUNNING, step=40, attempt=1)
    for token, progress in enumerate([(0, 0), (0, 0), (20, 0), (20, 0), (40, 0), (40, 0)], start=1):
        lost(study, token, progress)
    assert stops_without_progress(study, RUNS[0]) == ("lost", 2)
    score(study, RUNS[0].evaluations[0])
    assert stops_without_progress(study, RUNS[0]) == ("", 0), "a score is progress too"
    drawn = RunStore(study, RUNS[0]).drawn_path(RUNS[0].evaluations[1])
    drawn.parent.mkdir()
    for batches, content in enumerate((b"one batch", b"another", b"and another"), start=1):
        drawn.write_bytes(content)
        assert stops_without_progress(study, RUNS[0]) == ("", 0), "samples of the next are, too"
        with Ledger(study).claim(RUNS[0]) as lease:
            assert lease.token == 6 + batches
    assert stops_without_progress(study, RUNS[0]) == ("lost", 1)


def test_a_failed_cell_stays_so_until_it_is_retried(study):
    RunStore(study, RUNS[0]).set_status(FAILED, step=20, attempt=1, reason="not finite at step 20")
    ledger = Ledger(study)
    assert (state(study), ledger.claim(RUNS[0])) == ("failed", None)
    assert ledger.retry(RUNS[0])
    assert state(study) == "retryable"
    assert not ledger.retry(RUNS[0]), "there is nothing more to forgive"
    RunStore(study, RUNS[0]).set_status(FAILED, step=20, attempt=2, reason="not finite at step 20")
    assert state(study) == "failed", "the next failure counts again"


def test_a_cancelled_cell_is_not_begun_until_it_is_retried(study):
    ledger = Ledger(study)
    ledger.cancel(RUNS[0])
    assert (state(study), ledger.claim(RUNS[0])) == ("cancelled", None)
    assert ledger.retry(RUNS[0])
    assert state(study) in ("planned", "retryable")
    assert fake(study).wait(timeout=60) == 0
    assert state(study) == "done"


def test_cancelling_stops_a_running_cell_with_its_state_saved(study, whole):
    with ended(fake(study, "--lease", "0.6", env={**os.environ, "FAKE_STEP_S": "0.1"})) as (worker,):
        wait_for(lambda: RunStore(study, RUNS[0]).metrics())
        Ledger(study).cancel(RUNS[0])
        assert worker.wait(timeout=60) == 0
    (cell,) = Ledger(study).cells()
    assert (cell.state, cell.attempt.ended) == ("cancelled", "cancelled")
    assert 10 <= cell.step < 60
    assert Ledger(study).retry(RUNS[0])
    assert fake(study).wait(timeout=60) == 0
    assert holdings(study)[1] == {RUNS[0].run: whole[1][RUNS[0].run]}


def test_a_queue_of_a_process_that_is_gone_does_not_count(study):
    queue = Queue(study, "local")
    queue.save({RUNS[0].run: ""})
    assert state(study) == "queued"
    queue.owner = {**queue.owner, "started": "1"}
    queue.save({RUNS[0].run: ""})
    assert state(study) == "planned"


def test_eight_workers_racing_for_four_cells_train_each_once(tmp_path, whole):
    folder = make_study(tmp_path / "study", RUNS[:4])
    workers = [fake(folder, "--lease", "3") for _ in range(8)]
    with ended(*workers):
        assert [worker.wait(timeout=120) for worker in workers] == [0] * 8
    assert all([one.ended for one in attempts_of(folder, run)] == [DONE] for run in RUNS[:4])
    assert holdings(folder)[1] == {run.run: whole[1][run.run] for run in RUNS[:4]}


POINTS = [
    "claim:before:1",
    "claim:after:1",
    "status:before:1",
    "status:after:2",
    "row:before:2",
    "row:torn:2",
    "row:after:3",
    "checkpoint:before:2",
    "checkpoint:after:2",
    "evaluation:before:1",
    "evaluation:after:2",
    "status:before:5",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_between_any_two_files_costs_nothing(study, whole, point):
    assert fake(study, crash=point).wait(timeout=60) == -signal.SIGKILL
    assert state(study) != "done"
    assert fake(study).wait(timeout=60) == 0
    assert state(study) == "done"
    assert holdings(study)[1] == {RUNS[0].run: whole[1][RUNS[0].run]}
    assert holdings(study)[0] == [row for row in whole[0] if row["run"] == RUNS[0].run]
    left = [path for path in study.rglob(".*") if path.parent.name != "checkpoints"]  # the fake's own
    assert left == [], "what the dead had half written is cleared"


def kill_at_random(folder, kills, workers, seed, slowest, step_s, stops):
    """Kill workers at random moments, each replaced at once, until enough have died; how many did.

    `stops` is the share that is stopped instead, for longer than its lease, and wakes to find its cell taken over.
    """
    rng, dead = random.Random(seed), 0
    slow = {**os.environ, "FAKE_STEP_S": str(step_s)}
    running, asleep, ledger = [], [], Ledger(folder)
    try:
        while dead < kills:
            while asleep and asleep[0][0] < time.monotonic():
                _, woken = asleep.pop(0)
                woken.send_signal(signal.SIGCONT)
                running.append(woken)
            for cell in ledger.cells():
                ledger.retry(cell.run)  # deaths before a first checkpoint may come three in a row: a person says go on
            if all(cell.state == DONE for cell in ledger.cells()):
                break
            running = [process for process in running if process.poll() is None]
            running += [fake(folder, "--lease", "2", env=slow) for _ in range(workers - len(running))]
            time.sleep(rng.uniform(0, slowest / workers))
            victim = running.pop(rng.randrange(len(running)))
            if rng.random() < stops and victim.poll() is None:
                victim.send_signal(signal.SIGSTOP)
                asleep.append((time.monotonic() + 4, victim))
                continue
            victim.kill()
            dead += victim.wait() == -signal.SIGKILL
        return dead
    finally:
        for process in (*running, *(one for _, one in asleep)):
            process.kill()
            process.wait()


def survives(tmp_path, whole, kills, seed, step_s, stops=0.0):
    folder = make_study(tmp_path / "study", RUNS)
    died = kill_at_random(folder, kills, workers=3, seed=seed, slowest=1.2, step_s=step_s, stops=stops)
    for cell in Ledger(folder).cells():
        Ledger(folder).retry(cell.run)
    assert fake(folder).wait(timeout=120) == 0
    assert holdings(folder) == whole
    return died


def test_random_kills_cost_nothing(tmp_path, whole):
    assert survives(tmp_path, whole, kills=15, seed=1, step_s=0.01) >= 10


@pytest.mark.long
def test_a_hundred_random_kills_and_takeovers_of_the_stopped_cost_nothing(tmp_path, whole):
    assert survives(tmp_path, whole, kills=100, seed=2, step_s=0.1, stops=0.2) == 100


def test_a_stopped_worker_that_wakes_writes_nothing(study, whole):
    """SIGSTOP for longer than the lease: another takes over, and the first one's next write is refused."""
    slow = {**os.environ, "FAKE_STEP_S": "0.05"}
    with ended(fake(study, "--lease", "0.6", env=slow, stderr=subprocess.PIPE, text=True)) as (sleeper,):
        wait_for(lambda: RunStore(study, RUNS[0]).metrics())
        sleeper.send_signal(signal.SIGSTOP)
        assert fake(study, "--lease", "0.6").wait(timeout=60) == 0
        before = {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()}
        sleeper.send_signal(signal.SIGCONT)
        _, err = sleeper.communicate(timeout=60)
    assert "attempt 1 has lost its lease: attempt 2 holds the run" in err
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()} == before
    assert [one.ended for one in attempts_of(study, RUNS[0])] == ["", DONE]
    assert holdings(study)[1] == {RUNS[0].run: whole[1][RUNS[0].run]}


def test_workers_an_hour_apart_do_not_take_from_each_other(tmp_path, whole):
    folder = make_study(tmp_path / "study", RUNS[:2])
    slow = {**os.environ, "FAKE_STEP_S": "0.03"}
    workers = [fake(folder, "--lease", "1", before=[*hour], env=slow) for hour in ([], ["--hour-ahead"])]
    with ended(*workers):
        assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    assert all([one.ended for one in attempts_of(folder, run)] == [DONE] for run in RUNS[:2])
    assert holdings(folder)[1] == {run.run: whole[1][run.run] for run in RUNS[:2]}


def test_sigterm_saves_and_exits_with_75_and_a_second_one_changes_nothing(study, whole):
    slow = {**os.environ, "FAKE_STEP_S": "0.05"}
    with ended(fake(study, env=slow)) as (worker,):
        wait_for(lambda: RunStore(study, RUNS[0]).metrics())
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=30) == 75
    (cell,) = Ledger(study).cells()
    assert (cell.state, cell.reason, cell.attempt.ended) == ("retryable", "preempted", "preempted")
    assert 10 <= cell.step < 60
    assert fake(study, "--cell", RUNS[0].run).wait(timeout=60) == 0
    assert holdings(study)[1] == {RUNS[0].run: whole[1][RUNS[0].run]}


def test_a_hung_step_shows_where_and_gives_the_cell_up(study, whole):
    hanging = {**os.environ, "FAKE_HANG": "25"}
    with ended(fake(study, "--lease", "0.6", "--hang", "0.5", env=hanging, stderr=subprocess.PIPE, text=True)) as (
        worker,
    ):
        _, err = worker.communicate(timeout=60)
    assert worker.returncode == 70
    assert "nothing has moved for" in err
    assert "fake_execute" in err, "the stack says where"
    assert fake(study).wait(timeout=60) == 0
    assert holdings(study)[1] == {RUNS[0].run: whole[1][RUNS[0].run]}


def test_a_worker_waits_for_a_silent_holder_and_not_for_a_living_one(study):
    files = run_files(RunStore(study, RUNS[0]).path)
    with claim(files, "x", Observer(), lease_s=0.6) as lease, ended(fake(study, "--cell", RUNS[0].run)) as (worker,):
        assert worker.wait(timeout=60) == 0, "the holder lives: nothing to do here"
        assert state(study) == "running"
        lease.close()  # it falls silent
        assert fake(study, "--cell", RUNS[0].run).wait(timeout=60) == 0
        assert state(study) == "done"


WRITE = """
import sys
from pathlib import Path
from dit.store.study import MetricsWriter
number, attempt = int(sys.argv[2]), int(sys.argv[3])
writer = MetricsWriter(Path(sys.argv[1]), attempt)
for step in range(1000):
    writer.write({"step": 1000 * number + step, "loss": number + step / 1000, "text": "x" * (step % 300)})
writer.close()
"""


def test_rows_of_concurrent_writers_are_neither_lost_nor_torn(tmp_path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path), str(k), str(k + 1)]) for k in range(8)]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 8
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(8000))
    assert all(row["loss"] == row["step"] // 1000 + row["step"] % 1000 / 1000 for row in rows)


def test_a_torn_last_row_is_dropped_and_its_step_comes_from_the_next_attempt(tmp_path):
    first = MetricsWriter(tmp_path, 1)
    first.write({"step": 10, "loss": 1.0})
    first._file.write(b'{"step": 20, "lo')
    first.close()
    second = MetricsWriter(tmp_path, 2)
    second.write({"step": 20, "loss": 2.0})
    second.close()
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}]


def test_the_worker_command_refuses_what_it_cannot_do(study):
    for options, message in [
        (["--cell", "../../etc"], "has no cell '../../etc'"),
        (["--lease", "0"], "--lease 0.0: expected a positive number of seconds"),
        (["--cpus", "0;1"], "--cpus 0;1: expected processor numbers"),
        (["--log-every", "0"], "--log-every 0: expected a positive whole number"),
    ]:
        done = subprocess.run([*line(study), *options], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert message in done.stderr
