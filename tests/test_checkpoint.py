"""Checkpoints: the same bits back, no damage goes unseen, and a kill at any moment costs nothing that was there."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dit import checkpoint
from dit.checkpoint import Checkpoints, Corrupt, flatten
from dit.errors import UserError
from dit.store import read_json, write_json


class State(NamedTuple):
    """As nested as a training state."""

    params: dict
    count: jax.Array


def tree(step):
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32).at[0, :3].set(jnp.array([jnp.nan, -0.0, jnp.inf]))
    half = jnp.asarray(rng.normal(size=(7,)), ml_dtypes.bfloat16)
    return State({"a": {"kernel": kernel, "bias": half}, "empty": {}, "b": (jnp.uint8([step]),)}, jnp.int32(step))


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two checkpoints, written once."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (3, 10):
        Checkpoints(folder, "run-a").save(step, tree(step))
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def files(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def test_a_tree_comes_back_bit_for_bit(folder):
    found = Checkpoints(folder, "run-a")
    assert found.steps() == [3, 10]
    for step in found.steps():
        assert same(found.restore(step, jax.eval_shape(lambda: tree(0))), tree(step))
    assert not same(tree(3), tree(10))
    assert found.restore_latest(tree(0), pytest.fail)[0] == 10


def test_leaves_are_named_by_their_path():
    assert list(flatten(tree(0))) == ["params/a/bias", "params/a/kernel", "params/b/0", "count"]


def test_there_is_nothing_in_an_empty_or_absent_folder(tmp_path):
    assert Checkpoints(tmp_path / "none", "run-a").restore_latest(tree(0), pytest.fail) is None
    assert Checkpoints(tmp_path / "none", "run-a").steps() == []


def test_a_checkpoint_that_is_there_is_kept(folder):
    Checkpoints(folder, "run-a").save(10, tree(11))
    assert same(Checkpoints(folder, "run-a").restore(10, tree(0)), tree(10))


def flip(path):
    """Another value of one bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [flip, truncate, zero, os.remove], ids=lambda damage: damage.__name__)
def test_damage_to_any_file_is_seen(folder, damage):
    names = files(folder / "00000010")
    assert "manifest.json" in names
    assert len(names) > 3
    found = Checkpoints(folder, "run-a")
    for name in names:
        path = folder / "00000010" / name
        before = path.read_bytes()
        if before:
            damage(path)
        else:
            os.remove(path)
        with pytest.raises(Corrupt):
            found.restore(10, tree(0))
        path.write_bytes(before)
    assert same(found.restore(10, tree(0)), tree(10))


def test_a_flip_anywhere_in_the_manifest_is_corruption_and_not_another_run_or_version(folder):
    path = folder / "00000010" / "manifest.json"
    content = path.read_bytes()
    random.seed(0)
    for position in [
        content.index(b'"schema_version": ') + 18,
        content.index(b"run-a"),
        *random.sample(range(len(content) - 1), 40),
    ]:
        changed = bytearray(content)
        changed[position] ^= 0x08
        path.write_bytes(changed)
        with pytest.raises(Corrupt):
            Checkpoints(folder, "run-a").restore(10, tree(0))


def test_a_file_that_does_not_belong_there_is_seen(folder):
    (folder / "00000010" / "arrays" / "more").write_text("x")
    with pytest.raises(Corrupt, match="arrays/more"):
        Checkpoints(folder, "run-a").restore(10, tree(0))


def test_a_corrupt_checkpoint_is_set_aside_with_a_warning_and_the_one_before_used(folder):
    truncate(folder / "00000010" / "manifest.json")
    warnings = []
    found = Checkpoints(folder, "run-a")
    step, restored = found.restore_latest(tree(0), warnings.append)
    assert step == 3
    assert same(restored, tree(3))
    (warning,) = warnings
    assert "checkpoint of step 10 is corrupt and was set aside" in warning
    assert sorted(os.listdir(folder)) == ["00000003", "00000010.corrupt-0"]
    found.save(10, tree(10))
    truncate(folder / "00000010" / "manifest.json")
    assert found.restore_latest(tree(0), warnings.append)[0] == 3
    assert sorted(os.listdir(folder)) == ["00000003", "00000010.corrupt-0", "00000010.corrupt-1"]
    assert found.steps() == [3]


def test_when_all_are_corrupt_there_is_none(folder):
    for step in ("00000003", "00000010"):
        flip(folder / step / "manifest.json")
    warnings = []
    assert Checkpoints(folder, "run-a").restore_latest(tree(0), warnings.append) is None
    assert len(warnings) == 2


def test_another_runs_checkpoint_is_refused_and_stays(folder):
    found = Checkpoints(folder, "run-b")
    with pytest.raises(UserError, match="belongs to run run-a, expected run-b"):
        found.restore_latest(tree(0), pytest.fail)
    assert found.steps() == [3, 10]


def test_a_newer_schema_is_refused(folder):
    path = folder / "00000010" / "manifest.json"
    manifest = read_json(path)
    del manifest["digest"]
    manifest["schema_version"] = 2
    write_json(path, {**manifest, "digest": checkpoint.digest(manifest)})
    with pytest.raises(UserError, match="schema version 2, this version reads up to 1"):
        Checkpoints(folder, "run-a").restore(10, tree(0))


def test_what_a_killed_writer_left_is_cleared_and_never_counts(folder):
    left = folder / ".00000020.writing-123"
    shutil.copytree(folder / "00000010", left)
    found = Checkpoints(folder, "run-a")
    assert not left.exists()
    assert found.steps() == [3, 10]


@pytest.mark.parametrize("stage", ["rename", "fsync"])
def test_a_save_that_is_cut_off_leaves_no_checkpoint(folder, monkeypatch, stage):
    def cut_off(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, stage, cut_off)
        with pytest.raises(OSError, match="no space"):
            Checkpoints(folder, "run-a").save(20, tree(20))
    found = Checkpoints(folder, "run-a")
    assert found.steps() == [3, 10]
    found.save(20, tree(20))
    assert same(found.restore(20, tree(0)), tree(20))


@pytest.mark.parametrize(("keep", "left"), [(1, [10]), (2, [3, 10]), (5, [3, 10])])
def test_pruning_keeps_the_newest(folder, keep, left):
    found = Checkpoints(folder, "run-a")
    found.prune(keep)
    assert found.steps() == left


SAVE_FOR_EVER = """
import sys
from pathlib import Path
import test_checkpoint as t
found = t.Checkpoints(Path(sys.argv[1]), "run-a")
step = (found.steps() or [0])[-1]
print("ready", flush=True)
while True:
    step += 1
    found.save(step, t.tree(step % 100))
    print(step, flush=True)
    found.prune(2)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_of_saving_costs_no_checkpoint_and_gives_no_wrong_bits(tmp_path):
    random.seed(1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(6):
        command = [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
            lines = [writer.stdout.readline(), writer.stdout.readline()]
            time.sleep(random.uniform(0, 0.3))
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        reported = int(lines[-1])
        step, restored = Checkpoints(tmp_path, "run-a").restore_latest(tree(0), pytest.fail)
        assert step in (reported, reported + 1)
        assert same(restored, tree(step % 100))
        assert not list(tmp_path.glob(".*"))
