"""Goodput of several attempts against sums done by hand."""

import json

import pytest

from dit.goodput import Goodput, goodput


def attempt(folder, number, elapsed_s, rows):
    """An attempt that recorded `elapsed_s` at its last stop (None: it never came to one), and its rows of (step, images/s, elapsed)."""
    (folder / "metrics").mkdir(exist_ok=True)
    if elapsed_s is not None:
        value = {"schema_version": 1, "began": 0.0, "elapsed_s": elapsed_s, "seconds": {}}
        (folder / f"times-{number:04d}.json").write_text(json.dumps(value))
    lines = [json.dumps({"step": step, "images_per_s": rate, "elapsed_s": at}) + "\n" for step, rate, at in rows]
    if lines:
        (folder / "metrics" / f"{number:04d}.jsonl").write_text("".join(lines))


def test_an_undisturbed_attempt(tmp_path):
    attempt(tmp_path, 1, 20.0, [(10, None, 6.0), (20, 80.0, 7.0), (30, 40.0, 9.0)])
    # Batches of 8: steps 11-20 took 1 s and 21-30 took 2 s, so the untimed first ten count 1.5 s, at the mean time of a step.
    assert goodput(tmp_path, 8) == Goodput(pytest.approx(4.5), 20.0, pytest.approx(4.5 / 20))


def test_steps_that_were_done_again_count_once_and_the_time_of_all_attempts_counts(tmp_path):
    attempt(tmp_path, 1, 5.0, [(10, 80.0, 4.0), (20, 80.0, 8.0)])  # killed after its last stop, at step 20 or later
    attempt(tmp_path, 2, None, [])  # killed before it came to anything: nothing tells of it
    attempt(tmp_path, 3, 3.0, [])  # stopped before its first row
    attempt(tmp_path, 4, 10.0, [(20, 40.0, 6.0), (30, 20.0, 9.0)])
    assert goodput(tmp_path, 8) == Goodput(pytest.approx(1 + 2 + 4), 8.0 + 3.0 + 10.0, pytest.approx(7 / 21))


def test_a_run_that_has_not_begun(tmp_path):
    assert goodput(tmp_path, 8) == Goodput(0.0, 0.0, 0.0)
