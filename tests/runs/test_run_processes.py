"""One run in two real processes: a notice that one of them gets, the same step for both, the samples that they share, and a death."""

import dataclasses
import signal

import jax
import numpy as np
import pytest
from process_group import finish, start
from test_chaos import RUN, STOPS
from worker_processes import attempts_of, ended, fake_cells, gang, holdings, make_study

from dit.design.config import Evaluation, RunArguments
from dit.design.features import Features
from dit.hosts.processes import Processes
from dit.runs.draws import Draws
from dit.score.features import OwnExtractor
from dit.score.sampling import Sampler
from dit.score.scoring import Scorer
from dit.store.study import RunStore
from dit.train.checkpoint import Checkpoints, flatten
from dit.train.step import build
from dit.train.throughput import TIMINGS
from sweeps import arguments

pytestmark = pytest.mark.long

SCORE = Evaluation(26, "digits", num_samples=21, sampling_steps=3)

TWO = """
import os, signal, time
from pathlib import Path
jax.config.update("jax_compilation_cache_dir", arguments[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from test_chaos import ARGUMENTS, RUN
from dit.hosts import preemption
from dit.runs.run import execute
notice, asked = arguments[2] == "notice", []
reached = preemption.Preemption.reached

def slowly(self):
    asked.append(1)
    if len(asked) == 9 and rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3 if len(asked) > 8 else 0)  # JAX looks for the signal once a second
    return reached(self)

if notice:
    preemption.Preemption.reached = slowly
state = execute(Path(arguments[0]), "two", RUN, ARGUMENTS, lambda event: print(event["event"], flush=True))
print("ended", state, flush=True)
sys.exit({"done": 0, "retryable": 75}.get(state, 3))
"""

DRAW = """
jax.config.update("jax_compilation_cache_dir", arguments[0])
from test_run_processes import drawn
print(drawn(), flush=True)
"""


def first_pixels(images):
    return images.reshape(len(images), -1)[:, :4]


class Judge(Scorer):
    """Scores by looking at every image in its place."""

    decoder = None

    def __init__(self):
        seen = []

        def extract(images):
            seen.append(images)
            return first_pixels(images)

        record = Features("looked_at", make=first_pixels, channels=1)
        self.__dict__ |= {"extractor": OwnExtractor(record, extract), "seen": seen}

    def scores(self, statistics, metrics):
        images = np.concatenate(self.seen)
        return {"fid": float((images.astype(np.float64).mean(axis=(1, 2, 3)) * np.arange(1, len(images) + 1)).sum())}


def drawn():
    """Of an untrained model whose weights are spread over all devices: score, and sums of images and labels."""
    from dit.model.compute import Compute
    from dit.model.mesh import make_mesh
    from dit.model.transformer import applied

    processes = Processes()
    mesh = make_mesh(f"fsdp={jax.device_count()}") if processes.count > 1 else None
    program = build(RUN, mesh)
    sampler = Sampler(applied(RUN.model, Compute(), "cpu"), RUN.model, RUN.diffusion, batch_size=4)
    draws = Draws(sampler, processes, lambda: None)
    found = draws.score(Judge(), SCORE, program.init().ema)
    images, labels = found.images[:16], found.labels[:16]
    return f"{found.scores} {images.shape} {images.astype(int).sum()} {labels.tolist()}"


def what_is_left(folder):
    record = RunStore(folder, RUN)
    found, like = Checkpoints(record.path / "checkpoints", RUN.hash), build(RUN).abstract()
    arrays = {
        step: {name: np.asarray(leaf) for name, leaf in flatten(found.restore(step, like)).items()}
        for step in found.steps()
    }
    rows = [{name: value for name, value in row.items() if name not in TIMINGS} for row in record.metrics()]
    return arrays, rows


def test_a_notice_to_one_process_stops_both_at_the_same_step_and_costs_nothing(tmp_path):
    cache = tmp_path / "xla"
    results = finish(start(TWO, 2, tmp_path / "whole", cache, ""), 300)
    assert [code for code, _ in results] == [0, 0], results
    results = finish(start(TWO, 2, tmp_path / "stopped", cache, "notice"), 300)
    assert [code for code, _ in results] == [75, 75], results
    record = RunStore(tmp_path / "stopped", RUN)
    assert (record.status()["state"], record.status()["reason"]) == ("retryable", "preempted")
    step = record.status()["step"]
    assert 8 <= step < 26
    assert Checkpoints(record.path / "checkpoints", RUN.hash).steps()[-1] == step
    results = finish(start(TWO, 2, tmp_path / "stopped", cache, ""), 300)
    assert [code for code, _ in results] == [0, 0], results
    arrays, rows = what_is_left(tmp_path / "stopped")
    expected, expected_rows = what_is_left(tmp_path / "whole")
    assert rows == expected_rows
    assert [row["step"] for row in rows] == sorted({*range(4, 26, 4), *STOPS})
    for at, leaves in expected.items():
        for name, leaf in leaves.items():
            assert leaf.tobytes() == arrays[at][name].tobytes(), (at, name)
    for rank, (_, output) in enumerate(results):  # process 0 alone tells, and writes
        assert ("step\n" in output) == (rank == 0)
    assert len(list((record.path / "metrics").glob("*.jsonl"))) == 2


def test_two_processes_draw_the_samples_of_a_lone_one(tmp_path):
    results = finish(start(DRAW, 2, tmp_path / "xla", devices=2), 300)
    assert [code for code, _ in results] == [0, 0], results
    lone = drawn()
    assert [output.splitlines()[-1] for _, output in results] == [lone, lone]
    assert "(16, 8, 8, 1)" in lone  # the first of 21; the score is of all


def test_two_processes_go_on_with_the_samples_that_were_drawn_when_one_died(tmp_path):
    """Process 0 dies when three of ten batches of an evaluation are kept; the next two draw the other seven, to the same score."""
    (cell,) = fake_cells(1, steps=20)
    cell = dataclasses.replace(cell, evaluations=(Evaluation(20, "digits", num_samples=40, sampling_steps=2),))

    def study(name):
        folder = make_study(tmp_path / name, (cell,))
        arguments.save(folder, RunArguments(sample_batch_size=4))
        return folder

    straight, folder = study("straight"), study("study")
    with ended(*gang(straight)) as processes:
        assert [process.wait(timeout=600) for process in processes] == [0, 0]
    with ended(*gang(folder, before=["--crash", "drawn:after:3"])) as (leader, _):
        assert leader.wait(timeout=600) == -signal.SIGKILL
    (kept,) = folder.rglob("drawn/*.part")
    assert RunStore(folder, cell).missing_evaluations()
    # Seven batches are left: an eighth file would end the worker.
    with ended(*gang(folder, before=["--crash", "drawn:after:8"])) as processes:
        assert [process.wait(timeout=600) for process in processes] == [0, 0]
    assert not kept.exists()
    assert [one.ended for one in attempts_of(folder, cell)] == ["", "done"]
    assert holdings(folder) == holdings(straight)
