"""Goodput of several attempts against sums done by hand, and, of a real cell under fire, against a log that a hook keeps."""

import json
import os
import random
import signal
import time

import pytest
from worker_processes import Nursery, make_study, wait_for

from dit.config import DATASETS, RunConfig, model_config
from dit.goodput import Goodput, goodput
from dit.lease import Attempt
from dit.store import RunStore
from sweeps.ledger import Ledger
from sweeps.status import status_rows, summary


def attempt(folder, number, elapsed_s, rows):
    """An attempt that recorded `elapsed_s` at its last stop (None: it never came to one), and its rows of (step, images/s, elapsed)."""
    (folder / "metrics").mkdir(exist_ok=True)
    if elapsed_s is not None:
        value = {"schema_version": 1, "began": 0.0, "elapsed_s": elapsed_s, "seconds": {}}
        (folder / f"times-{number:04d}.json").write_text(json.dumps(value))
    lines = [json.dumps({"step": step, "images_per_s": rate, "elapsed_s": at}) + "\n" for step, rate, at in rows]
    if lines:
        (folder / "metrics" / f"{number:04d}.jsonl").write_text("".join(lines))


def held(folder, number, held_s, ended, beats_s=10.0):
    """The record of an attempt whose last heartbeat, one every 10 s, said that it had been holding the run for so long."""
    (folder / "attempts").mkdir(exist_ok=True)
    record = Attempt(number, {}, int(held_s / beats_s), 60.0, held_s, ended)
    (folder / "attempts" / f"{number:04d}.json").write_bytes(record.to_bytes())
    return record


def test_an_undisturbed_attempt(tmp_path):
    attempt(tmp_path, 1, 20.0, [(10, None, 6.0), (20, 80.0, 7.0), (30, 40.0, 9.0)])
    held(tmp_path, 1, 24.0, "done")
    # Batches of 8: steps 11-20 took 1 s and 21-30 took 2 s, so the untimed first ten count 1.5 s, at the mean time of a step.
    assert goodput(tmp_path, 8) == Goodput(pytest.approx(4.5), 24.0, pytest.approx(4.5 / 24), 0.0)


def test_steps_that_were_done_again_count_once_and_the_time_of_all_attempts_counts(tmp_path):
    attempt(tmp_path, 1, 5.0, [(10, 80.0, 4.0), (20, 80.0, 8.0)])  # killed after its last stop, at step 20 or later
    attempt(tmp_path, 2, None, [])  # no record tells of it
    attempt(tmp_path, 3, 3.0, [])  # stopped before its first row
    attempt(tmp_path, 4, 10.0, [(20, 40.0, 6.0), (30, 20.0, 9.0)])
    assert goodput(tmp_path, 8) == Goodput(pytest.approx(1 + 2 + 4), 8.0 + 3.0 + 10.0, pytest.approx(7 / 21), 0.0)


def test_a_killed_attempt_ended_between_its_last_sign_of_life_and_the_heartbeat_that_did_not_come(tmp_path):
    attempt(tmp_path, 1, None, [(10, 80.0, 26.0)])
    held(tmp_path, 1, 20.0, "")  # a row after 26 s, no heartbeat after 30 s: 28 s, 2 s too few or too many at most
    held(tmp_path, 2, 0.0, "")  # claimed, and dead before its first heartbeat after 10 s
    (tmp_path / "attempts" / "0003.json").write_bytes(b'{"owner"')  # written by half: nothing is known of it
    alive = held(tmp_path, 4, 40.0, "")
    assert goodput(tmp_path, 8) == Goodput(1.0, 28.0 + 5.0 + 45.0, pytest.approx(1 / 78), 2.0 + 5.0 + 5.0)
    assert goodput(tmp_path, 8, alive) == Goodput(1.0, 28.0 + 5.0 + 40.0, pytest.approx(1 / 73), 2.0 + 5.0)
    held(tmp_path, 4, 42.0, "", beats_s=14.0)  # its heartbeats came late, so the next one would have
    assert goodput(tmp_path, 8) == Goodput(1.0, 28.0 + 5.0 + 49.0, pytest.approx(1 / 82), 2.0 + 5.0 + 7.0)


def test_a_run_that_has_not_begun(tmp_path):
    assert goodput(tmp_path, 8) == Goodput(0.0, 0.0, 0.0, 0.0)


def test_the_goodput_of_a_study_is_of_all_time_that_its_cells_were_held(tmp_path):
    data = DATASETS["digits"]
    runs = tuple(RunConfig(model_config("adaln", "S", 4, data), data, 8, 4, seed) for seed in range(3))
    folder = make_study(tmp_path, runs)
    for run, productive, wall in zip(runs, (8.0, 1.0), (10.0, 30.0)):
        record = RunStore(folder, run)
        record.set_status("done", step=8, attempt=1, goodput=productive / wall, productive_s=productive, wall_s=wall)
    rows = status_rows(Ledger(folder))
    assert [row["goodput"] for row in rows] == [0.8, pytest.approx(1 / 30), None]
    assert summary(rows).goodput == pytest.approx(9 / 40)


KILLS, STEPS_BETWEEN = 20, 24


@pytest.mark.long
def test_goodput_over_twenty_kills_is_within_one_per_cent_of_an_independent_log(tmp_path):
    """The log: when this test started and killed each worker, and when each step was at work, by a hook in the worker."""
    data = DATASETS["digits"]
    model = model_config("adaln_zero", "B", 1, data, ladder="nano")
    run = RunConfig(model, data, KILLS * STEPS_BETWEEN + 20, batch_size=16)
    folder, log, rng = make_study(tmp_path / "study", (run,)), tmp_path / "steps", random.Random(1)
    log.touch()
    nursery, lives = Nursery(tmp_path / "log"), []

    def begin():
        began = time.monotonic()
        pid = nursery.start(folder, "--lease", "0.6", "--steps-per-dispatch", "1", before=["--step-log", str(log)])
        return pid, began

    try:
        for _ in range(KILLS):
            stand = log.read_text().count("\n")
            pid, began = begin()
            if wanted := rng.choice([0, *range(1, STEPS_BETWEEN, 3)]):
                wait_for(lambda: pid in nursery.codes or log.read_text().count("\n") >= stand + wanted)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.1 if wanted else 2.0))
            lives.append(time.monotonic() - began)
            os.kill(pid, signal.SIGKILL)
            assert nursery.wait(pid) == -signal.SIGKILL
            Ledger(folder).retry(run)  # three deaths in a row without a checkpoint are a failure: a person says go on
        pid, began = begin()
        assert nursery.wait(pid) == 0, nursery.log.read_text()
        lives.append(time.monotonic() - began)
    finally:
        nursery.close()

    durations = {step: ended - began for step, began, ended in map(json.loads, log.read_text().splitlines())}
    assert durations.keys() == set(range(1, run.steps + 1))
    productive, wall = sum(durations.values()), sum(lives)
    reported = goodput(RunStore(folder, run).path, run.batch_size)
    print(
        f"{KILLS} kills; log: {productive:.2f} of {wall:.2f} s, {productive / wall:.4f}; reported: {reported}; "
        f"ratios {reported.productive_s / productive:.4f}, {reported.wall_s / wall:.4f}, {reported.goodput / (productive / wall):.4f}"
    )
    assert reported.goodput == pytest.approx(productive / wall, rel=0.01)
    (row,) = status_rows(Ledger(folder))
    assert row["goodput"] == pytest.approx(reported.goodput, abs=2e-4)
