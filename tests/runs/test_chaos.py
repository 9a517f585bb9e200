"""Killed at any point, a run resumes to the same bits: weights, average, optimizer state and loss curve of the uninterrupted one."""

import hashlib
import random
import signal
import time

import numpy as np
import pytest
from zygote import STAGES, Zygote

from dit.design.config import DATASETS, ModelConfig, RunArguments, RunConfig, to_json
from dit.store.study import RunStore
from dit.train.checkpoint import Checkpoints, flatten
from dit.train.step import build
from dit.train.throughput import TIMINGS

MODEL = ModelConfig("adaln_zero", 4, depth=1, hidden_size=32, num_heads=2, input_size=8, in_channels=1, num_classes=10)
RUN = RunConfig(MODEL, DATASETS["digits"], steps=26, batch_size=8)
ARGUMENTS = RunArguments(log_every=4, checkpoint_every=6, keep_checkpoints=2, steps_per_dispatch=1)
STOPS = [6, 12, 18, 24, 26]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def zygote():
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="module")
def attempt(zygote, tmp_path_factory):
    """Runs one attempt in a process of its own and returns its exit code."""
    cache = tmp_path_factory.mktemp("xla")

    def run(folder, **fault):
        folder.mkdir(exist_ok=True)
        task = {"folder": str(folder), "run": to_json(RUN), "arguments": vars(ARGUMENTS), "cache": str(cache)}
        return zygote.attempt(**task, log=str(folder / "events"), **fault)

    return run


@pytest.fixture(scope="module")
def whole(attempt, tmp_path_factory):
    """What the uninterrupted run leaves, and how long it takes once its programs are compiled."""
    for name in ("cold", "warm"):
        folder, began = tmp_path_factory.mktemp(name), time.monotonic()
        assert attempt(folder) == 0
    return what_is_left(folder), time.monotonic() - began


def what_is_left(folder):
    """SHA-256 of every array of every checkpoint that is kept, and the rows without what depends on the machine."""
    record = RunStore(folder, RUN)
    found, like = Checkpoints(record.path / "checkpoints", RUN.hash), build(RUN).abstract()
    hashes = {
        step: {
            name: hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
            for name, leaf in flatten(found.restore(step, like)).items()
        }
        for step in found.steps()
    }
    rows = [{name: value for name, value in row.items() if name not in TIMINGS} for row in record.metrics()]
    assert [row["step"] for row in rows] == sorted({*range(4, 26, 4), *STOPS})
    left_over = [path.name for path in (record.path / "checkpoints").glob("*") if not path.name.isdigit()]
    return hashes, rows, left_over, record.status()["state"]


def test_the_uninterrupted_run_is_what_it_should_be(whole):
    (hashes, rows, left_over, state), _ = whole
    assert (list(hashes), left_over, state) == ([24, 26], [], "done")
    assert {name.split("/")[0] for name in hashes[26]} == {"params", "ema", "opt_state", "step"}
    assert hashes[24] != hashes[26]
    assert all(np.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_in_any_stage_of_a_save_costs_nothing(attempt, whole, tmp_path, stage):
    first = 3 if "prun" in stage else 1  # there is nothing to prune before the third save
    for count in (1, 3):
        folder = tmp_path / str(count)
        assert attempt(folder, stage=stage, count=count) == -signal.SIGKILL
        stood = Checkpoints(RunStore(folder, RUN).path / "checkpoints", RUN.hash).steps()
        saved = count + (first - 1 if stage == "half pruned" else 0)
        assert stood[-1:] == STOPS[saved - 2 + ("prun" in stage) : saved - 1 + ("prun" in stage)][-1:]
        assert attempt(folder) == 0
        assert what_is_left(folder) == whole[0]


@pytest.mark.parametrize("seed", range(10))
def test_kills_at_random_moments_cost_nothing(attempt, whole, tmp_path, seed):
    """Five deaths each before the run may end; some come before its first step, some while it saves."""
    draw, killed, seconds, tries = random.Random(seed), 0, whole[1], 0
    while killed < 5:
        code = attempt(tmp_path / f"run{tries}", seconds=draw.uniform(0.2, 0.9) * seconds)
        if code == 0 and killed:
            break
        if code == 0:  # the undisturbed run had a slower machine: begin anew, and strike sooner
            tries, seconds = tries + 1, seconds / 2
            continue
        assert code == -signal.SIGKILL
        killed += 1
    assert attempt(tmp_path / f"run{tries}") == 0
    assert what_is_left(tmp_path / f"run{tries}") == whole[0]


@pytest.mark.parametrize("stage", ["manifest", "pruning"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_second_signal_during_a_save_does_not_corrupt_it(attempt, whole, tmp_path, stage, number):
    assert attempt(tmp_path / "run", stage=stage, count=1, signals=[int(number), int(number)]) == 75
    found = Checkpoints(RunStore(tmp_path / "run", RUN).path / "checkpoints", RUN.hash)
    found.restore(found.steps()[-1], build(RUN).abstract())
    assert attempt(tmp_path / "run") == 0
    assert what_is_left(tmp_path / "run") == whole[0]
