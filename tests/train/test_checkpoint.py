"""Checkpoints: the same bits back, no damage goes unseen, and a kill at any moment costs nothing that was there."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dit.design.config import digest
from dit.errors import UserError
from dit.store import manifest
from dit.store.manifest import Corrupt
from dit.train import checkpoint
from dit.train.checkpoint import Checkpoints, CheckpointWriter, flatten

GOLDEN = Path(__file__).parents[1] / "golden"


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
    with CheckpointWriter(folder, "run-a") as writer:
        for step in (3, 10):
            writer.save(step, tree(step))
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def files(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def latest(folder, warn=lambda message: None, identity="run-a"):
    """What a worker that takes the run up again goes on from."""
    with CheckpointWriter(folder, identity) as writer:
        return writer.restore_latest(tree(0), warn)


def save(folder, step, value=None, **options):
    with CheckpointWriter(folder, "run-a", **options) as writer:
        writer.save(step, tree(step) if value is None else value)


def test_a_tree_comes_back_bit_for_bit(folder):
    found = Checkpoints(folder, "run-a")
    assert found.steps() == [3, 10]
    for step in found.steps():
        assert same(found.restore(step, jax.eval_shape(lambda: tree(0))), tree(step))
    assert not same(tree(3), tree(10))
    assert latest(folder, pytest.fail)[0] == 10


def test_leaves_are_named_by_their_path():
    assert list(flatten(tree(0))) == ["params/a/bias", "params/a/kernel", "params/b/0", "count"]


def test_there_is_nothing_in_an_empty_or_absent_folder(tmp_path):
    assert Checkpoints(tmp_path / "none", "run-a").steps() == []
    assert latest(tmp_path / "none", pytest.fail) is None


def test_a_checkpoint_that_is_there_is_kept(folder):
    save(folder, 10, tree(11))
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
    step, restored = latest(folder, warnings.append)
    assert step == 3
    assert same(restored, tree(3))
    (warning,) = warnings
    assert "checkpoint of step 10 is corrupt and was set aside" in warning
    assert sorted(os.listdir(folder)) == ["00000003", "00000010.corrupt-0"]
    save(folder, 10)
    truncate(folder / "00000010" / "manifest.json")
    assert latest(folder, warnings.append)[0] == 3
    assert sorted(os.listdir(folder)) == ["00000003", "00000010.corrupt-0", "00000010.corrupt-1"]
    assert found.steps() == [3]


def test_when_all_are_corrupt_there_is_none(folder):
    for step in ("00000003", "00000010"):
        flip(folder / step / "manifest.json")
    warnings = []
    assert latest(folder, warnings.append) is None
    assert len(warnings) == 2


def test_another_runs_checkpoint_is_refused_and_stays(folder):
    for opening in (
        lambda: CheckpointWriter(folder, "run-b"),
        lambda: Checkpoints(folder, "run-b").restore(3, tree(0)),
    ):
        with pytest.raises(UserError, match="belongs to run run-a, expected run-b: move it away"):
            opening()
    assert Checkpoints(folder, "run-b").steps() == [3, 10]


def test_a_newer_schema_is_refused(folder):
    path = folder / "00000010" / "manifest.json"
    changed = json.loads(path.read_text())
    del changed["digest"]
    changed["schema_version"] = 2
    path.write_text(json.dumps({**changed, "digest": digest(changed)}))
    with pytest.raises(UserError, match="schema version 2, this version reads up to 1"):
        Checkpoints(folder, "run-a").restore(10, tree(0))


def test_what_a_killed_writer_left_is_cleared_and_never_counts(folder):
    left = folder / ".00000020.writing-123"
    shutil.copytree(folder / "00000010", left)
    assert Checkpoints(folder, "run-a").steps() == [3, 10]
    assert left.exists()  # whoever only reads may meet a save that is under way
    with CheckpointWriter(folder, "run-a"):
        assert not left.exists()


@pytest.mark.parametrize(("module", "stage"), [(checkpoint, "rename"), (manifest, "fsync"), (checkpoint.Path, "mkdir")])
def test_a_save_that_fails_is_told_and_does_not_poison_the_next(folder, monkeypatch, module, stage):
    """Whatever stops save N: N is never the latest, N + 1 is written, and the error comes out once."""
    with CheckpointWriter(folder, "run-a") as writer:
        with monkeypatch.context() as patch, pytest.raises(UserError) as told:
            patch.setattr(getattr(module, "os", module), stage, full)
            writer.save(20, tree(20))
            while writer.is_saving:
                time.sleep(0.01)
            writer.check()
        assert "the checkpoint of step 20" in str(told.value)
        assert "the disk is full; the one of step 10 is whole: make room and run again" in str(told.value)
        writer.check()
        assert not list(folder.glob(".*.writing-*"))
        assert writer.steps() == [3, 10]
        writer.save(21, tree(21))
    step, restored = latest(folder, pytest.fail)
    assert step == 21
    assert same(restored, tree(21))


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_of_the_last_save_comes_out_at_the_end(folder, monkeypatch):
    monkeypatch.setattr(checkpoint.os, "rename", full)
    with pytest.raises(UserError, match="the disk is full"):
        save(folder, 20)


def test_arrays_that_training_goes_on_with_are_saved_as_they_were(tmp_path):
    """The step after a save gives its buffers back to the device while the files are still being written."""
    advance = jax.jit(lambda x: x * 1.5 + 1, donate_argnums=0)
    x = advance(jnp.arange(400_000.0))
    expected = np.array(x)
    with CheckpointWriter(tmp_path, "run-a") as writer:
        writer.save(1, {"x": x})
        for _ in range(20):
            x = advance(x)
        x.block_until_ready()
    found = Checkpoints(tmp_path, "run-a").restore(1, {"x": jnp.zeros(400_000)})["x"]
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, x)


def test_a_restored_state_needs_no_other_program_than_a_fresh_one(folder):
    """Else each resumed run would compile its step anew: what is bound to a device has another place in the compilation cache."""
    double = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree))
    jax.block_until_ready(double(jax.jit(lambda: tree(3))()))
    found = Checkpoints(folder, "run-a").restore(3, jax.eval_shape(lambda: tree(0)))
    assert not any(leaf.committed for leaf in jax.tree.leaves(found))
    double(found)
    assert double._cache_size() == 1


def test_saving_does_not_wait_for_the_files(folder, monkeypatch):
    opened = threading.Event()
    seal = manifest.seal
    monkeypatch.setattr(manifest, "seal", lambda *arguments: (opened.wait(), seal(*arguments)))
    with CheckpointWriter(folder, "run-a") as writer:
        writer.save(20, tree(20))
        writer.check()
        assert writer.is_saving
        assert writer.steps() == [3, 10]
        opened.set()
    assert writer.steps() == [3, 10, 20]


@pytest.mark.parametrize(("keep", "left"), [(1, [20]), (2, [10, 20]), (5, [3, 10, 20]), (None, [3, 10, 20])])
def test_pruning_keeps_the_newest(folder, keep, left):
    save(folder, 20, keep=keep)
    assert Checkpoints(folder, "run-a").steps() == left
    assert not list(folder.glob(".*"))


class Stale(Exception):
    """The lease is another's now."""


def test_a_writer_that_was_fenced_changes_nothing(folder):
    held = [True]

    def fence():
        if not held[0]:
            raise Stale

    with CheckpointWriter(folder, "run-a", keep=1, fence=fence) as writer:
        writer.check()
        held[0] = False
        flip(folder / "00000010" / "manifest.json")
        before = {name: (folder / name).read_bytes() for name in files(folder)}
        with pytest.raises(Stale):
            writer.save(20, tree(20)), writer.wait()
        with pytest.raises(Stale):
            writer.restore_latest(tree(0), pytest.fail)
        with pytest.raises(Stale):
            writer.save(10, tree(10))
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write checkpoints in .*/file \((File exists|Not a directory)\): make it a folder"
    ):
        CheckpointWriter(tmp_path / "file", "run-a")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint.Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot write checkpoints in .* \(Permission denied\)"):
        CheckpointWriter(tmp_path / "run", "run-a")


def test_a_checkpoint_under_another_steps_name_is_corrupt(folder):
    os.rename(folder / "00000010", folder / "00000011")
    with pytest.raises(Corrupt, match="it is of step 10, but its folder says 00000011"):
        Checkpoints(folder, "run-a").restore(11, tree(0))


@pytest.mark.parametrize(
    ("like", "name"),
    [
        (
            tree(0)._replace(params={**tree(0).params, "more": jnp.zeros(2)}),
            "'params/more' is absent there, expected float32",
        ),
        (tree(0)._replace(params={"a": tree(0).params["a"]}), "'params/b/0' is uint8.1. there, expected absent"),
        (tree(0)._replace(count=jnp.zeros(3)), "'count' is int32.. there, expected float32.3."),
    ],
)
def test_a_checkpoint_of_other_arrays_is_refused_by_their_name(folder, like, name):
    with pytest.raises(UserError, match=f"00000010 was written by another version: {name}"):
        Checkpoints(folder, "run-a").restore(10, like)


def test_a_damaged_checkpoint_of_the_same_step_is_written_anew(folder):
    flip(folder / "00000010" / "manifest.json")
    save(folder, 10)
    assert same(Checkpoints(folder, "run-a").restore(10, tree(0)), tree(10))
    assert (folder / "00000010.corrupt-0").is_dir()


def test_the_checkpoints_of_the_first_version_are_read(tmp_path):
    """`golden/checkpoint-schema-1.tar.xz` was written by the version that saved without a thread."""
    shutil.unpack_archive(GOLDEN / "checkpoint-schema-1.tar.xz", tmp_path)
    (tmp_path / "checkpoint-schema-1").rename(tmp_path / "checkpoints")
    step, restored = latest(tmp_path / "checkpoints", pytest.fail, "run-a")
    assert step == 10
    assert same(restored, tree(10))


SAVE_FOR_EVER = """
import sys
from pathlib import Path
import test_checkpoint as t
with t.CheckpointWriter(Path(sys.argv[1]), "run-a", keep=2) as writer:
    step = (writer.steps() or [0])[-1]
    print("ready", flush=True)
    while True:
        step += 1
        writer.save(step, t.tree(step % 100))
        writer.wait()
        print(step, flush=True)
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
        step, restored = latest(tmp_path, pytest.fail)
        assert step in (reported, reported + 1)
        assert same(restored, tree(step % 100))
        assert not list(tmp_path.glob(".*"))
