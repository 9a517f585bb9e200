"""Several real processes: word and deadlines among them, and checkpoints that they write together and others read."""

import json
import time

import jax
import numpy as np
import pytest
from process_group import finish, start

from dit.errors import UserError
from dit.hosts.processes import Processes
from dit.train.checkpoint import Checkpoints

WIDTH, DEPTH = 24, 8


def tree(step):
    rng = np.random.default_rng(step)
    return {"w": rng.normal(size=(DEPTH, WIDTH)).astype(np.float32), "b": np.arange(3, dtype=np.int32) + step}


SHARDED = """
from pathlib import Path
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from dit.train.checkpoint import CheckpointWriter
from test_processes import tree

def places(mesh):
    return {"w": NamedSharding(mesh, P("x", None)), "b": NamedSharding(mesh, P())}

def on(mesh, value):
    return {name: jax.make_array_from_callback(value[name].shape, place, lambda index, v=value[name]: v[index])
            for name, place in places(mesh).items()}

def like(mesh):
    return {name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=places(mesh)[name]) for name, value in tree(0).items()}

def is_same(found, value):
    return all(np.array_equal(shard.data, value[name][shard.index]) for name in value for shard in found[name].addressable_shards)
"""

TOGETHER = (
    SHARDED
    + """
import time
from dit.errors import UserError
from dit.hosts.processes import Absent, Processes
mesh = Mesh(np.array(jax.devices()), ("x",))
processes = Processes(deadline_s=30)
assert processes.tell("word", f"from {rank}") == "from 0"
assert processes.tell("word", rank + 1) == 1
processes.agree("no problem", None)
try:
    processes.agree("a problem", f"of process {rank}" if rank else None)
except UserError as error:
    assert str(error) == "of process 1"
with CheckpointWriter(Path(arguments[0]), "run-a", keep=2, processes=processes) as writer:
    for step in (3, 10, 20):
        writer.save(step, on(mesh, tree(step)))
    writer.save(20, on(mesh, tree(21)))
    writer.wait()
    step, found = writer.restore_latest(like(mesh), print)
    assert step == 20 and is_same(found, tree(20)) and found["w"].sharding == places(mesh)["w"]
hasty = Processes(deadline_s=1)
with CheckpointWriter(Path(arguments[0]), "run-a", processes=hasty) as writer:
    if rank == 1:
        time.sleep(4)
    else:
        for wait in (lambda: hasty.agree("late", None), lambda: hasty.meet("later"), lambda: writer.save(30, tree(30))):
            try:
                wait()
            except Absent as error:
                print(error)
hurried = Processes(deadline_s=1)
if rank == 1:
    try:
        hurried.tell("a word", None)
    except Absent as error:
        print(error)
elif rank == 0:
    time.sleep(2.5)  # two deadlines and more
assert hurried.tell("a word at last", rank, patiently=True) == 0
processes.meet("the end")
print("done", rank)
"""
)


def test_two_processes_write_one_checkpoint_that_a_lone_one_reads(tmp_path):
    results = finish(start(TOGETHER, 2, tmp_path, devices=2))
    assert [code for code, _ in results] == [0, 0], results
    for name in ("late", "later", "the save of step 30"):
        assert f"process 1 of 2 did not come to '{name}' within 1 s\n" in results[0][1]
    assert "process 0 of 2 did not come to 'a word' within 1 s\n" in results[1][1]
    assert [output.splitlines()[-1] for _, output in results] == ["done 0", "done 1"]
    found = Checkpoints(tmp_path, "run-a")
    assert found.steps() == [10, 20]
    for step in found.steps():
        restored = found.restore(step, tree(0))
        assert all(np.array_equal(restored[name], value) for name, value in tree(step).items())
        assert {leaf.sharding.device_set == {jax.devices()[0]} for leaf in restored.values()} == {True}
    manifest = json.loads((tmp_path / "00000020" / "manifest.json").read_text())
    assert any("process_1" in name for name in manifest["files"])


OTHER_DEVICES = (
    SHARDED
    + """
assert jax.device_count() == 8
meshes = [Mesh(np.array(jax.devices()[:count]), ("x",)) for count in (8, 1, 4)]
with CheckpointWriter(Path(arguments[0]), "run-a") as writer:
    writer.save(1, on(meshes[0], tree(5)))
    for step, (mesh, then) in enumerate(zip(meshes, [*meshes[1:], meshes[0]]), 1):
        writer.wait()
        found = writer.restore(step, like(then))
        assert is_same(found, tree(5)) and found["w"].sharding == places(then)["w"], step
        writer.save(step + 1, found)
"""
)


def test_eight_devices_then_one_then_four_then_eight(tmp_path):
    ((code, output),) = finish(start(OTHER_DEVICES, 1, tmp_path, devices=8))
    assert code == 0, output
    restored = Checkpoints(tmp_path, "run-a").restore(4, tree(0))
    assert np.array_equal(restored["w"], tree(5)["w"])


HUNG = """
import time
from dit.hosts.watchdog import Watchdog
watchdog = Watchdog(0.5)
for _ in range(20):
    time.sleep(0.05)
    watchdog.feed()
print("fed", flush=True)
def hang():
    sum(range(10**12))  # one call of C code, which holds the interpreter's lock
hang()
"""


def test_a_process_that_hangs_shows_where_and_ends():
    ((code, output),) = finish(start(HUNG, 1), timeout_s=30)
    assert code == 1
    assert output.startswith("fed\nTimeout (0:00:00.500000)!")
    assert "in hang" in output


def test_a_lone_process_agrees_with_itself():
    processes = Processes()
    assert processes.leads
    assert processes.tell("word", {"a": 1}) == {"a": 1}
    processes.agree("nothing", None)
    with pytest.raises(UserError, match="no room"):
        processes.agree("something", "no room")
    assert processes.options("save") == {}


IDLE = """
import time
from dit.hosts.processes import Processes
processes = Processes(deadline_s=1)
processes.meet("the start")
print("idle", flush=True)
if rank == 0:
    time.sleep(600)
processes.tell("cell", None, patiently=True)
"""


@pytest.mark.long
def test_whoever_waits_patiently_ends_with_the_process_it_waits_for():
    leader, follower = processes = start(IDLE, 2)
    try:
        assert follower.stdout.readline() == "idle\n"
        time.sleep(3)
        assert follower.poll() is None
        leader.kill()
        assert follower.wait(timeout=60) != 0
    finally:
        finish(processes)
