"""Goodput of several attempts against sums done by hand, and, of a real cell under fire, against a log that a hook keeps."""

import json
import os
import random
import signal
import time

import pytest
from worker_processes import Nursery, make_study, wait_for

from dit.design.config import DATASETS, RunConfig, model_config
from dit.store.goodput import Goodput, goodput
from dit.store.lease import Attempt
from dit.store.study import RunStore
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


def test_a_row_that_says_what_its_steps_took_counts_that(tmp_path):
    attempt(tmp_path, 1, 20.0, [(10, None, 6.0), (20, 80.0, 7.0)])
    rows = [
        {"step": 10, "images_per_s": None, "elapsed_s": 6.0, "step_s": 3.0},
        {"step": 20, "images_per_s": 80.0, "elapsed_s": 7.0, "step_s": 1.5},
    ]
    (tmp_path / "metrics" / "0001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert goodput(tmp_path, 8).productive_s == pytest.approx(
        4.5
    )  # the first ten were slower than the rate of the others


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


KILLS = 20


@pytest.mark.long
@pytest.mark.parametrize(("kind", "bound"), [("arithmetic", 0.01), ("trained", 0.02)])
def test_goodput_over_twenty_kills_is_near_an_independent_log(tmp_path, monkeypatch, kind, bound):
    """The log: when this test killed each worker, and, by a hook in it, when it claimed the cell and when each step was at work."""
    monkeypatch.setenv("FAKE_STEP_S", "0.01")
    data, far = DATASETS["digits"], 200 if kind == "arithmetic" else 100
    model = model_config("adaln_zero", "B", 2, data, ladder="nano")
    run = RunConfig(model, data, KILLS * far + 20, batch_size=16)
    folder, log, rng = make_study(tmp_path / "study", (run,)), tmp_path / "steps", random.Random(1)
    log.touch()
    nursery, ends = Nursery(tmp_path / "log"), []
    how = ["--step-log", str(log), *["--fake"] * (kind == "arithmetic")]
    options = ["--lease", "0.6", "--steps-per-dispatch", "1", "--checkpoint-every", "50"]

    def steps():
        return log.read_text().count("\n")

    try:
        for _ in range(KILLS):
            stand, wanted = steps(), rng.choice([0, *range(10, far, 10)])
            pid = nursery.start(folder, *options, before=how)
            if wanted:
                wait_for(lambda: pid in nursery.codes or steps() >= stand + wanted)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.2 if wanted else 2.0))
            os.kill(pid, signal.SIGKILL)
            ends.append(time.monotonic())
            assert nursery.wait(pid) == -signal.SIGKILL, nursery.log.read_text()
            Ledger(folder).retry(run)  # three deaths in a row without a checkpoint are a failure: a person says go on
        pid = nursery.start(folder, *options, before=how)
        assert nursery.wait(pid) == 0, nursery.log.read_text()
        ends.append(time.monotonic())
    finally:
        nursery.close()

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    claims = [at for name, at, *_ in lines if name == "claim"]
    wall = sum(min(end for end in ends if end > claim) - claim for claim in claims)
    durations = {line[0]: line[2] - line[1] for line in lines if line[0] != "claim"}
    assert durations.keys() == set(range(1, run.steps + 1))
    productive = sum(durations.values())
    reported = goodput(RunStore(folder, run).path, run.batch_size)
    print(
        f"{len(claims)} attempts, {KILLS} kills; log: {productive:.2f} of {wall:.2f} s, {productive / wall:.4f}; {reported}; ratios "
        f"{reported.productive_s / productive:.4f}, {reported.wall_s / wall:.4f}, {reported.goodput / (productive / wall):.4f}"
    )
    assert reported.wall_s == pytest.approx(wall, rel=0.02)
    assert reported.goodput == pytest.approx(productive / wall, rel=bound)
    (row,) = status_rows(Ledger(folder))
    assert row["goodput"] == (pytest.approx(reported.goodput, abs=2e-4) if kind == "trained" else None)
