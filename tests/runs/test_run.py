"""One run to its end: rows, scores and status; and the same bits however often it is interrupted."""

import contextlib
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dit.design.config import DATASETS, Evaluation, OptimConfig, RunArguments, RunConfig, digest, model_config, to_json
from dit.design.rows import columns, recorded_row
from dit.runs import journal
from dit.runs import run as product
from dit.runs.run import execute
from dit.store import lease, manifest
from dit.store.study import RunStore, read_json
from dit.train import checkpoint
from dit.train.checkpoint import Checkpoints, CheckpointWriter, flatten
from dit.train.throughput import TIMINGS

DATA = DATASETS["digits"]
SCORES = tuple(Evaluation(step, "digits", num_samples=32, sampling_steps=4) for step in (12, 30))
RUN = RunConfig(model_config("adaln_zero", "S", 4, DATA, ladder="nano"), DATA, 30, 8, evaluations=SCORES)
ARGUMENTS = RunArguments(log_every=5, checkpoint_every=8, sample_batch_size=16)
STOPS = [8, 12, 16, 24, 30]


class Killed(BaseException):
    """The end of the process, as far as the code under test can tell."""


@pytest.fixture(scope="module", autouse=True)
def compiled_once(cache):
    """The same programs for every attempt of this file, and for its other processes: compiling is most of a tiny run's time."""
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    compilation_cache.reset_cache()
    build, sampler = functools.cache(product.build), functools.cache(product.Sampler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product, "build", lambda run, *_: build(replace(run, evaluations=(), steps=1)))
        patch.setattr(product, "Sampler", sampler)
        yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def finish(folder, run=RUN, report=lambda event: None, arguments=ARGUMENTS):
    return execute(folder, "mine", run, arguments, report)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run, and the events that it told."""
    folder, events = tmp_path_factory.mktemp("whole"), []
    assert finish(folder, report=events.append) == "done"
    return folder, events


def record_of(folder, run=RUN):
    """Everything that must not depend on interruptions, of a run that is done."""
    record = RunStore(folder, run)
    rows = [{name: value for name, value in row.items() if name not in TIMINGS} for row in record.metrics()]
    samples = {}
    for path in sorted((record.path / "samples").iterdir()):
        with np.load(path) as arrays:
            samples[path.name] = {name: arrays[name].tobytes() for name in arrays.files}
    evaluations = {path.name: path.read_bytes() for path in sorted((record.path / "evals").iterdir())}
    status = {name: record.status()[name] for name in ("state", "step", "loss")}
    return rows, evaluations, samples, arrays_of(record.path / "checkpoints"), arrays_of(record.path / "ema"), status


def arrays_of(folder):
    abstract = jax.eval_shape(product.build(RUN).init)
    found = Checkpoints(folder, RUN.hash)
    like = abstract if folder.name == "checkpoints" else abstract.ema
    return {
        step: {name: np.asarray(leaf).tobytes() for name, leaf in flatten(found.restore(step, like)).items()}
        for step in found.steps()
    }


def test_a_run_leaves_its_rows_scores_and_status(whole):
    folder, events = whole
    record = RunStore(folder, RUN)
    assert record.is_done()
    assert [record.status()[name] for name in ("state", "step", "attempt")] == ["done", 30, 1]
    steps = sorted({*STOPS, *range(5, 31, 5)})
    assert [row["step"] for row in record.metrics()] == steps
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in record.metrics())
    assert record.status()["loss"] == record.metrics()[-1]["loss"]
    assert 0 < record.status()["goodput"] < 1
    assert [event["step"] for event in events if event["event"] == "step"] == steps
    assert [(e["event"], e["step"]) for e in events if "score" in e["event"]] == [
        ("score", 12), ("scored", 12), ("score", 30), ("scored", 30)
    ]  # fmt: skip
    assert sorted(path.name for path in (record.path / "checkpoints").iterdir()) == ["00000024", "00000030"]
    assert sorted(path.name for path in (record.path / "ema").iterdir()) == ["00000012", "00000030"]
    assert read_json(record.path / "environment-0001.json")["backend"] == "cpu"


def test_each_score_has_its_row_protocol_floor_and_first_samples(whole):
    record = RunStore(whole[0], RUN)
    for value, evaluation in zip(record.evaluations(), SCORES, strict=True):
        assert list(value) == ["schema_version", "evaluation", "scores", "protocol", "floor"]
        row = recorded_row(RUN, "mine", value)
        assert list(row) == [name for name in columns(["fd_digits"]) if name != "citation"]
        assert (row["step"], row["study"], row["status"], row["num_samples"]) == (evaluation.step, "mine", "done", 32)
        assert row["fd_digits"] > value["floor"] > 0
        assert row["protocol"] == digest(value["protocol"])
        assert value["protocol"]["sampling_steps"] == 4
        with np.load(record.samples_path(evaluation)) as kept:
            assert (kept["images"].shape, kept["images"].dtype) == ((16, 8, 8, 1), np.uint8)
            assert kept["labels"].shape == (16,)


def test_running_again_does_nothing(whole):
    before = record_of(whole[0])
    events = []
    assert finish(whole[0], report=events.append) == "done"
    assert events == []
    assert record_of(whole[0]) == before


def dying(count, kind=None):
    """A report that is the process's last moment at its `count`-th event, of a `kind` if one is given."""
    seen = []

    def report(event):
        seen.append(event["event"])
        if (len(seen) if kind is None else seen.count(kind)) == count and kind in (None, event["event"]):
            raise Killed

    return report


def die_at(monkeypatch, name, count, after):
    """Have the process end at the `count`-th call of something that `dit.runs.run` uses, before it or after it."""
    owner, method = name
    original, calls = getattr(owner, method), []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == count and not after:
            raise Killed
        result = original(*args, **kwargs)
        if len(calls) == count:
            raise Killed
        return result

    monkeypatch.setattr(owner, method, call)


@pytest.mark.filterwarnings("ignore:unclosed file")
def test_an_attempt_that_ends_at_every_kind_of_event_costs_nothing(tmp_path, whole):
    """One folder, many deaths: at the first row, between stops, before and after a score."""
    for count, kind in ((3, None), (1, "score"), (1, "scored"), (1, "score")):
        with pytest.raises(Killed):
            finish(tmp_path, report=dying(count, kind))
    assert finish(tmp_path) == "done"
    assert RunStore(tmp_path, RUN).status()["attempt"] == 5
    assert record_of(tmp_path) == record_of(whole[0])


POINTS = [
    ((CheckpointWriter, "save"), 1, False),
    ((CheckpointWriter, "save"), 2, True),  # between the kept average of step 12 and the checkpoint
    ((CheckpointWriter, "save"), 3, True),
    ((manifest, "seal"), 2, False),
    ((manifest, "seal"), 3, True),
    ((os, "rename"), 3, False),
    ((os, "rename"), 3, True),
    ((checkpoint.shutil, "rmtree"), 6, False),
    ((product.store, "write_json"), 2, False),
    ((RunStore, "set_status"), 6, True),
    ((RunStore, "set_status"), 7, False),
]


@pytest.mark.parametrize(("name", "count", "after"), POINTS, ids=lambda value: getattr(value, "__name__", None))
def test_an_attempt_that_ends_between_two_files_costs_nothing(tmp_path, monkeypatch, whole, name, count, after):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, name, count, after)
        finish(tmp_path)
    assert finish(tmp_path) == "done"
    assert record_of(tmp_path) == record_of(whole[0])


KILLED = """
import json, os, signal, sys
from pathlib import Path
import jax
jax.config.update("jax_compilation_cache_dir", str(Path(os.environ["DIT_CACHE"]) / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
from dit.design.config import RunArguments, from_json
from dit.runs.run import execute
folder, study, run, arguments, last = json.loads(sys.argv[1])
def report(event):
    global last
    last -= 1
    if last == 0:
        os.kill(os.getpid(), signal.SIGKILL)
execute(Path(folder), study, from_json(run), RunArguments(**arguments), report)
"""


@pytest.mark.slow
def test_kill_9_in_another_process_costs_nothing(tmp_path, whole):
    task = json.dumps([str(tmp_path), "mine", to_json(RUN), vars(ARGUMENTS), 7])
    assert subprocess.run([sys.executable, "-c", KILLED, task]).returncode == -9
    assert RunStore(tmp_path, RUN).status()["state"] == "running"
    with open(RunStore(tmp_path, RUN).path / "metrics" / "0001.jsonl", "ab") as file:
        file.write(b'{"step": 3')
    assert finish(tmp_path) == "done"
    assert record_of(tmp_path) == record_of(whole[0])


def test_a_damaged_checkpoint_is_told_and_costs_only_steps(tmp_path, whole):
    with contextlib.suppress(Killed):
        finish(tmp_path, report=dying(2, "score"))
    record = RunStore(tmp_path, RUN)
    manifest = record.path / "checkpoints" / "00000030" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    events = []
    assert finish(tmp_path, report=events.append) == "done"
    assert events[0]["event"] == "warning"
    assert "step 30 is corrupt" in events[0]["message"]
    assert record_of(tmp_path)[:3] == record_of(whole[0])[:3]


def test_a_loss_that_is_not_finite_fails_the_run_with_its_step(tmp_path):
    run = replace(RUN, optim=OptimConfig(learning_rate=1e30))
    events = []
    assert finish(tmp_path, run, events.append) == "failed"
    status = RunStore(tmp_path, run).status()
    assert status["state"] == "failed"
    assert 1 <= status["step"] <= 5
    assert status["reason"].startswith(f"not finite at step {status['step']}: loss ")
    assert events[-1] == {"event": "failed", "reason": status["reason"]}
    assert RunStore(tmp_path, run).evaluations() == []
    assert not list((RunStore(tmp_path, run).path / "checkpoints").glob("*"))


def test_a_score_added_later_uses_the_kept_average_and_trains_nothing(tmp_path, monkeypatch, whole):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(whole[0]), str(folder)], check=True)
    more = replace(SCORES[0], sampling_steps=3)
    monkeypatch.setattr(product, "train", pytest.fail)
    run = replace(RUN, evaluations=(more, *SCORES))
    assert finish(folder, run) == "done"
    assert RunStore(folder, run).is_done()
    assert RunStore(folder, run).status()["loss"] == RunStore(folder, run).metrics()[-1]["loss"]
    fresh = tmp_path / "fresh"
    monkeypatch.undo()
    assert finish(fresh, run) == "done"
    path = RunStore(folder, run).evaluation_path(more)
    assert path.read_bytes() == RunStore(fresh, run).evaluation_path(more).read_bytes()


@pytest.mark.parametrize(
    ("late", "kind"), [(replace(SCORES[0], step=11), "averaged"), (replace(SCORES[0], ema=False), "raw")]
)
def test_a_score_that_comes_too_late_fails_with_what_to_do(tmp_path, whole, late, kind):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(whole[0]), str(folder)], check=True)
    run = replace(RUN, evaluations=(*SCORES, late))
    assert finish(folder, run) == "failed"
    reason = RunStore(folder, run).status()["reason"]
    assert f"no {kind} weights are kept of step {late.step}, which training has passed" in reason


def test_training_on_passes_through_the_states_of_the_shorter_run(tmp_path, whole):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(whole[0]), str(folder)], check=True)
    longer = replace(RUN, steps=36)
    assert finish(folder, longer) == "done"
    assert RunStore(folder, longer).status()["step"] == 36
    rows = RunStore(folder, longer).metrics()
    assert [row["step"] for row in rows][-3:] == [32, 35, 36]
    assert rows[:-3] == RunStore(whole[0], RUN).metrics()


def test_a_scorer_that_fails_is_a_failed_run_that_can_be_taken_up(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        patch.setattr(product, "open_scorer", Mock(side_effect=RuntimeError("no\nextractor")))
        assert finish(tmp_path) == "failed"
    status = RunStore(tmp_path, RUN).status()
    assert (status["reason"], status["step"]) == ("RuntimeError: no extractor", 12)
    assert finish(tmp_path) == "done"
    assert record_of(tmp_path) == record_of(whole[0])


def test_features_that_nothing_has_are_refused_before_training(tmp_path):
    run = replace(RUN, evaluations=(replace(RUN.evaluations[0], features="dino"),))
    assert finish(tmp_path, run) == "failed"
    status = RunStore(tmp_path, run).status()
    assert status["step"] == 0
    assert status["reason"].startswith("unknown features 'dino': expected one of inception, digits, mnist")


def test_a_mirror_that_fails_is_one_warning_and_changes_nothing(tmp_path, monkeypatch, whole):
    monkeypatch.setitem(sys.modules, "wandb", None)
    events = []
    assert finish(tmp_path, report=events.append, arguments=replace(ARGUMENTS, wandb="offline")) == "done"
    assert [event["event"] for event in events].count("warning") == 1
    assert "wandb mirror stopped" in events[0]["message"]
    assert record_of(tmp_path) == record_of(whole[0])


def test_a_failed_run_closes_its_mirror(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(journal.Mirror, "close", lambda mirror: closed.append(mirror))
    monkeypatch.setattr(product, "open_scorer", lambda *_: 1 / 0)
    assert finish(tmp_path) == "failed"
    assert len(closed) == 1


def test_only_one_process_runs_a_cell(tmp_path):
    record = RunStore(tmp_path, RUN)
    with lease.claim(lease.run_files(record.path), RUN.run, lease.Observer()), pytest.raises(lease.Busy):
        finish(tmp_path)
    assert os.listdir(record.path) == ["attempts"]


@pytest.fixture
def attentive():
    """SIGINT as Python handles it: a shell starts commands in the background with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGTERM", "SIGTERM"], ["SIGINT", "SIGINT"]], ids=" ".join)
@pytest.mark.usefixtures("attentive")
def test_a_signal_saves_at_the_next_step_and_nothing_is_lost(tmp_path, whole, signals):
    """Between two rows, between two stops, and as a score begins; a second signal comes while the state is being saved."""
    left, seen = [("step", 5), ("step", 20), ("score", 30)], []

    def report(event):
        seen.append(event)
        if left and (event["event"], event.get("step")) == left[0]:
            del left[0]
            for name in signals:
                signal.raise_signal(signal.Signals[name])

    record, steps = RunStore(tmp_path, RUN), []
    while finish(tmp_path, report=report) == "retryable":
        status = record.status()
        assert (status["state"], status["reason"]) == ("retryable", "preempted")
        assert status["step"] == Checkpoints(record.path / "checkpoints", RUN.hash).steps()[-1]
        steps.append(status["step"])
    assert len(steps) == 3
    assert 5 < steps[0] < 8
    assert 20 < steps[1] < 24
    assert steps[2] == 30
    assert record_of(tmp_path) == record_of(whole[0])
    logged = [event["step"] for event in seen if event["event"] == "step"]
    assert logged == sorted({*STOPS, *range(5, 31, 5)})  # none twice, and none for the steps at which it was stopped
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_checkpoint_of_another_cell_is_refused_before_anything_is_compiled(tmp_path, whole, monkeypatch):
    other = replace(RUN, seed=1)
    place = RunStore(tmp_path, other).path / "ema"
    shutil.copytree(RunStore(whole[0], RUN).path / "ema", place)
    monkeypatch.setattr(product, "train", pytest.fail)
    assert finish(tmp_path, other) == "failed"
    reason = RunStore(tmp_path, other).status()["reason"]
    assert reason == f"{place}/00000012 belongs to run {RUN.hash}, expected {other.hash}: move it away"
    assert sorted(os.listdir(place)) == ["00000012", "00000030"]


def test_an_average_whose_attempt_died_before_it_was_whole_is_saved_again(tmp_path, monkeypatch, whole):
    with contextlib.suppress(Killed):
        finish(tmp_path, report=dying(1, "scored"))
    shutil.rmtree(RunStore(tmp_path, RUN).path / "ema" / "00000012")
    assert finish(tmp_path) == "done"
    assert record_of(tmp_path) == record_of(whole[0])


def test_a_full_disk_fails_the_run_with_its_name_and_costs_only_steps(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "seal", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        assert finish(tmp_path) == "failed"
    reason = RunStore(tmp_path, RUN).status()["reason"]
    assert "cannot write the checkpoint of step 8" in reason
    assert "the disk is full; there is no earlier one: make room and run again" in reason
    assert finish(tmp_path) == "done"
    assert record_of(tmp_path) == record_of(whole[0])
