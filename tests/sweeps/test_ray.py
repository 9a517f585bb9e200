"""The Ray engine: what it decides, without Ray; and whole sweeps, killed heads, gangs and lost slices on real clusters here."""

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_study import (
    assert_is_near,
    by_the_local_engine,
    command,
    environment,
    records,
    running,
    story,
    table,
    wait_for,
)
from pandas.testing import assert_frame_equal
from ray_cluster import head, missing, pod, start_head

from dit.errors import UserError
from dit.store.study import load_study, write_json
from sweeps import engines
from sweeps.engine import Resources
from sweeps.engines import ray as client
from sweeps.engines.ray_driver import broken_slices, planned, room

needs_ray = pytest.mark.skipif(bool(missing()), reason=missing() or "Ray is here")
LONGER = 1200
"""Steps of a cell that is surely not done when its host is lost a hundred steps after its start."""
SLICE = {"platform": "tpu", "hosts": 2, "chips_per_host": 4, "accelerator": "v4", "topology": "2x2x2"}


def node(name="", chips=4, is_head=False, topology="2x2x2", cpus=1.0, gpus=0.0):
    labels = {"ray.io/tpu-slice-name": name, "ray.io/tpu-topology": topology} if name else {}
    has = {"CPU": cpus, "GPU": gpus} | ({"TPU": chips} if name else {}) | ({"TPU-v4-16-head": 1} if is_head else {})
    return {"Resources": has, "Labels": labels}


def test_room_for_gangs_counts_whole_slices_of_the_topology():
    asked = Resources(**SLICE)
    whole = [node("a", is_head=True), node("a")]
    nodes = [*whole, node("b", is_head=True), node("c"), node("d", 8, True, "2x4"), node()]
    assert room(nodes, asked) == 1
    assert broken_slices(nodes, asked) == {"b": "TPU-v4-16-head"}  # without a head, as c, nothing can be reserved
    assert broken_slices(whole, asked) == {}


def test_room_for_gangs_of_hosts_counts_what_each_can_hold():
    nodes = [node(cpus=8.0, gpus=8.0), node(cpus=8.0, gpus=8.0), node(cpus=64.0)]
    assert room(nodes, Resources("gpu", hosts=2, chips_per_host=8, cpus_per_host=8)) == 1
    assert room(nodes, Resources("gpu", hosts=2, chips_per_host=4, cpus_per_host=1)) == 2
    assert room(nodes, Resources("cpu", hosts=2, cpus_per_host=8)) == 5


def test_the_jobs_id_follows_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = client.submission_id(Path("a study; rm"))
    assert one == client.submission_id(tmp_path / "a study; rm") != client.submission_id(tmp_path / "other")
    assert one.startswith("dit-a-study--rm-")


def test_bad_input_is_one_line(tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    engines.declare(parser)
    with pytest.raises(UserError, match="--start-within -1"):
        client.check(parser.parse_args(["--start-within", "-1"]))
    monkeypatch.setattr(client.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "dit-scaling\[ray\]"'):
        client.check(parser.parse_args([]))
    (tmp_path / client.PLAN).write_text('{"cells": {"a": {"platform": "cpu", "mood": 1, "scheduler": []}}}')
    with pytest.raises(UserError, match="no plan of this version"):
        planned(tmp_path)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_command_does_not_outlive_the_task_that_started_it(tmp_path):
    note = tmp_path / "pid"
    command = ["sh", "-c", f"echo $$ > {note}.part; mv {note}.part {note}; exec sleep 60"]
    code = f"from sweeps.engines.ray_tasks import run_command; run_command({command!r}, {str(tmp_path / 'log')!r})"
    with running([sys.executable, "-c", code]) as task:
        wait_for(note.exists, 60, task)
        task.kill()
    wait_for(lambda: not alive(int(note.read_text())), 10)
    said = f"run_command(['sh', '-c', 'echo $A; exit 7'], {str(tmp_path / 'log')!r}, {{'A': 'said'}})"
    code = f"import sys; from sweeps.engines.ray_tasks import run_command; sys.exit({said})"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 7
    assert (tmp_path / "log").read_text() == "said\n"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The study's file and its folder by the local engine."""
    return by_the_local_engine(tmp_path_factory.mktemp("reference"))


@pytest.mark.long
@needs_ray
def test_a_study_on_ray_is_refused_twice_and_survives_its_head(reference, tmp_path):
    """Three cells as a detached job; a second submission is refused; Ray is killed; on a new head the study is finished."""
    study, local = reference
    out = tmp_path / "out"
    with head(**environment()) as cluster:

        def about():
            return story(out) + cluster.story()

        options = ["--engine", "ray", "--python", sys.executable, "--address"]

        def sweep(*more):
            line = command(study, out, *options, cluster.url, *more)
            try:
                return subprocess.run(line, env=cluster.settings, capture_output=True, text=True, timeout=400)
            except subprocess.TimeoutExpired as error:
                raise AssertionError(f"{error}\n{about()}") from error

        first = sweep("--detach")
        assert first.returncode == 0, first.stderr
        second = sweep()
        assert second.returncode == 2
        assert "is running already, as Ray job dit-out-" in second.stderr
        assert second.stderr.count("\n") == 1
        wait_for(lambda: any(100 <= r.status()["step"] < 300 for r in records(out)), 240, about=about)
        cluster.kill()
        wait_for(lambda: not cluster.workers(), 120, about=about)
        assert not all(record.is_done() for record in records(out))
        gone = sweep()
        assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
        assert "no Ray cluster answers at" in gone.stderr
        start_head(cluster)
        last = sweep()
        assert last.returncode == 0, last.stderr
        assert last.stderr.splitlines()[-1] == "3 of 3 done"
        assert (sweep().returncode, sweep().stderr) == (0, "3 of 3 done\n")
    assert any(record.status()["attempt"] == 2 for record in records(out))
    assert_frame_equal(table(out), table(local), check_exact=True)


@contextlib.contextmanager
def placed(cluster, study, out, needs):
    """The job that places the study's first cell on the cluster, started without a job server; the cell's record."""
    subprocess.run(command(study, out, "--declare"), env=cluster.settings, check=True, timeout=60)
    cell = load_study(out).runs[0].run
    write_json(out / client.PLAN, {"cells": {cell: dataclasses.asdict(Resources(**needs))}})
    line = [sys.executable, "-m", "sweeps.engines.ray_driver", "--study", str(out), "--start-within", "60"]
    with (
        open(out / "driver.log", "ab") as log,
        running(line, env=cluster.settings, stdout=log, stderr=log) as driver,
    ):
        yield driver, records(out)[0]


def places(cluster):
    """The slice of each process that works on a cell."""
    found = []
    for pid in cluster.workers():
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
            found += [one.partition("=")[2] for one in variables if one.startswith("TPU_NAME=")]
    return found


@pytest.mark.long
@needs_ray
def test_a_cell_of_two_processes_on_ray(reference, tmp_path):
    """One cell on two hosts: Ray's JAX trainer places them, JAX joins them, and the scores are those of one process."""
    study, local = reference
    out = tmp_path / "out"
    with (
        pod(tpu=False, slices=1, **environment()) as (cluster, _),
        placed(cluster, study, out, {"hosts": 2}) as (
            driver,
            record,
        ),
    ):
        wait_for(lambda: driver.poll() is not None, 600, about=lambda: story(out) + cluster.story())
        assert driver.returncode == 0, story(out)
    environments = [json.loads(path.read_text()) for path in record.path.glob("environment-*.json")]
    assert [one["processes"] for one in environments] == [2]
    assert_is_near(out, local, record)


@pytest.mark.long
@needs_ray
def test_a_cell_leaves_the_slice_that_lost_a_host_for_a_whole_one(tmp_path):
    """Two slices of two hosts. One host of the cell's slice is lost; the cell goes on, where it was saved, on the other slice."""
    study, local = by_the_local_engine(tmp_path, cells=1, steps=LONGER)
    out = tmp_path / "out"
    with pod(**environment()) as (cluster, raylets), placed(cluster, study, out, SLICE) as (driver, record):

        def wait(condition, seconds):
            wait_for(condition, seconds, driver, lambda: story(out) + cluster.story())

        wait(lambda: record.status()["step"] >= 100, 600)
        first = places(cluster)
        assert len(first) == 2
        assert len(set(first)) == 1
        lost = cluster.kill_host(raylets[f"{first[0]}-1"])
        assert len([line for line in lost if " dit worker " in line]) == 1, lost
        assert record.status()["step"] < LONGER
        other = {"slice0": "slice1", "slice1": "slice0"}[first[0]]
        wait(lambda: other in places(cluster), 600)
        wait_for(lambda: driver.poll() is not None, 600, about=lambda: story(out) + cluster.story())
        assert driver.returncode == 0, story(out)
    assert record.status()["attempt"] >= 2
    assert_is_near(out, local, record)
