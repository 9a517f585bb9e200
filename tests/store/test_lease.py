"""Leases on a disk and on an object store: one winner, takeover by the observer's clock alone, and losers that are told."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from gcs_server import serving
from object_store import ObjectStore

from dit.store import lease as module
from dit.store.lease import (
    CANCEL,
    CANCELLED,
    LOST,
    Attempt,
    Busy,
    Lease,
    LeaseLost,
    Observer,
    attempts,
    claim,
    is_gone,
    parse_attempt,
    this_process,
)
from dit.store.lease_files import DiskFiles, ObjectFiles

ELSEWHERE = {"host": "another", "boot": "of its own", "pid": 1, "started": "1"}


@pytest.fixture(scope="module")
def bucket():
    """The client through which gs:// is reached, and a server that it talks to."""
    with pytest.MonkeyPatch.context() as patch, serving() as (address, server):
        patch.setenv(
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"
        )  # it would ask Google first what kind of bucket this is
        gcsfs = pytest.importorskip("gcsfs", reason='gcsfs is not installed: pip install "dit-scaling[gcs]"')
        yield gcsfs.GCSFileSystem(endpoint_url=address, token="anon", skip_instance_cache=True), server


@pytest.fixture(params=["disk", "disk without links", "object store", "gs://"])
def files(request, tmp_path, monkeypatch):
    """Each kind of storage."""
    if request.param == "gs://":
        filesystem, _ = request.getfixturevalue("bucket")
        return ObjectFiles(filesystem, f"bucket/{uuid.uuid4().hex}/attempts")
    if request.param == "object store":
        return ObjectFiles(ObjectStore(), "bucket/study/attempts")
    if request.param == "disk without links":
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    return DiskFiles(tmp_path / "attempts")


@pytest.fixture
def clock():
    """A clock that stands until it is told to go."""
    clock = SimpleNamespace(now=1000.0)
    return clock


def observer(clock):
    return Observer(lambda: clock.now)


def held_elsewhere(files, token=1, beat=0, **fields):
    """An attempt of another host's process."""
    attempt = Attempt(token, ELSEWHERE, beat, **fields)
    (files.replace if f"{token:04d}.json" in files.names() else files.create)(f"{token:04d}.json", attempt.to_bytes())


def test_a_name_is_created_once_and_whole(files):
    assert files.names() == []
    assert files.read("0001.json") is None
    assert files.create("0001.json", b"first")
    assert not files.create("0001.json", b"second")
    assert (files.names(), files.read("0001.json")) == (["0001.json"], b"first")
    files.replace("0001.json", b"third")
    assert files.read("0001.json") == b"third"
    files.remove("0001.json")
    files.remove("0001.json")
    assert files.names() == []


def test_of_many_threads_one_claims(files):
    start = threading.Barrier(16)

    def one(_):
        start.wait()
        try:
            return claim(files, "run", Observer())
        except Busy:
            return None

    for token in range(1, 6):
        with ThreadPoolExecutor(16) as pool:
            won = [lease for lease in pool.map(one, range(16)) if lease]
        assert [lease.token for lease in won] == [token]
        won[0].end("done")
        won[0].close()
    assert [one.ended for one in attempts(files)] == ["done"] * 5


RACE = """
import os, sys, time
from pathlib import Path
from dit.store.lease import Busy, Observer, claim
from dit.store.lease_files import DiskFiles, ObjectFiles
folder, address, runs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if address:
    import gcsfs
    filesystem = gcsfs.GCSFileSystem(endpoint_url=address, token="anon")
observer = Observer()
(folder / f"ready-{os.getpid()}").touch()
while not (folder / "go").exists(): pass
for run in range(runs):
    try:
        files = ObjectFiles(filesystem, f"race/{run}") if address else DiskFiles(folder / str(run))
        print(run, claim(files, str(run), observer).token)
    except Busy:
        pass
print("end", flush=True)
time.sleep(60)  # a process that is gone would be taken over at once
"""


@pytest.mark.parametrize("storage", ["disk", "gs://"])
def test_of_many_processes_one_claims_each_run(tmp_path, request, storage):
    runs, address, filesystem = 25, "", None
    if storage == "gs://":
        filesystem, server = request.getfixturevalue("bucket")
        address, refused = filesystem._endpoint, server.refused
    line = [sys.executable, "-c", RACE, str(tmp_path), address, str(runs)]
    racers = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    try:
        while len(list(tmp_path.glob("ready-*"))) < len(racers):
            assert all(racer.poll() is None for racer in racers)
            time.sleep(0.05)
        (tmp_path / "go").touch()
        won = [int(line.split()[0]) for racer in racers for line in iter(racer.stdout.readline, "end\n")]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert sorted(won) == list(range(runs))
    places = [
        ObjectFiles(filesystem, f"race/{run}") if address else DiskFiles(tmp_path / str(run)) for run in range(runs)
    ]
    assert {one.token for files in places for one in attempts(files)} == {1}
    assert not address or server.refused > refused  # some did come too late


def test_a_silent_holder_is_taken_over_after_the_lease_time_on_the_observers_own_clock(files, clock):
    mine = observer(clock)
    held_elsewhere(files, lease_s=60.0)
    for now in (1000, 1059, 1060):
        clock.now = now
        with pytest.raises(Busy, match="held by another process"):
            claim(files, "run", mine)
    clock.now = 1060.5
    with claim(files, "run", mine) as lease:
        assert lease.token == 2


def test_a_heartbeat_keeps_the_run_however_long(files, clock):
    mine = observer(clock)
    for beat in range(20):
        held_elsewhere(files, beat=beat, lease_s=60.0)
        clock.now += 59
        with pytest.raises(Busy):
            claim(files, "run", mine)
    assert mine.has_moved("run")


def test_no_clock_but_the_observers_own_counts(tmp_path, clock, monkeypatch):
    """Files stamped an hour ahead or behind, and a wall clock that jumps, change nothing: neither is looked at."""
    files, mine = DiskFiles(tmp_path), observer(clock)
    monkeypatch.setattr(module.time, "time", lambda: pytest.fail("a wall clock was read"))
    for token, apart in enumerate((-3600, 3600), start=1):
        held_elsewhere(files, token, lease_s=60.0)
        now = os.stat(tmp_path).st_mtime
        os.utime(tmp_path / f"{token:04d}.json", (now + apart, now + apart))
        clock.now += 1000
        with pytest.raises(Busy):
            claim(files, "run", mine)
        clock.now += 59
        with pytest.raises(Busy):
            claim(files, "run", mine)
        clock.now += 2
        with claim(files, "run", mine) as lease:
            lease.check()
        files.remove(f"{lease.token:04d}.json")


def test_a_holder_that_was_overtaken_is_told_and_changes_nothing(files):
    with claim(files, "run", Observer()) as lease:
        lease.check()
        held_elsewhere(files, 2)
        before = files.read("0001.json")
        for call in (lease.check, lease.beat, lambda: lease.end("done")):
            with pytest.raises(LeaseLost, match="attempt 2 holds the run"):
                call()
        assert (lease.stop, lease.ended) == (LOST, "")
    assert files.read("0001.json") == before


def test_a_holder_that_was_paused_asks_storage_before_it_writes(files, clock):
    lease = Lease(files, 1, lease_s=60.0, clock=lambda: clock.now)
    files.create("0001.json", lease.attempt().to_bytes())
    lease.check()
    assert parse_attempt(1, files.read("0001.json")).beat == 0
    clock.now += 31
    lease.check()
    assert parse_attempt(1, files.read("0001.json")).beat == 1
    clock.now += 3600
    held_elsewhere(files, 2)
    with pytest.raises(LeaseLost):
        lease.check()


def test_a_holder_whose_storage_is_gone_does_not_pass_its_fence(tmp_path, clock):
    files = DiskFiles(tmp_path / "attempts")
    lease = Lease(files, 1, lease_s=60.0, clock=lambda: clock.now)
    files.create("0001.json", lease.attempt().to_bytes())
    (tmp_path / "attempts" / "0001.json").unlink()
    (tmp_path / "attempts").rmdir()
    with pytest.raises(LeaseLost):
        lease.check()
    clock.now += 100
    with pytest.raises((LeaseLost, OSError)):
        lease.check()


def test_the_heartbeat_counts_on_and_tells_progress(files):
    with claim(files, "run", Observer(), lease_s=0.12, progress={"from": [0, 0]}) as lease:
        lease.note(step=7)
        deadline = time.monotonic() + 20
        while (seen := attempts(files)[0]).beat < 3 or "step" not in seen.progress:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lease.end("done")
    last = attempts(files)[0]
    assert (last.ended, last.progress) == ("done", {"from": [0, 0], "step": 7})
    assert last.held_s > 0


def test_a_lease_that_is_left_is_free_at_once(files):
    with pytest.raises(KeyboardInterrupt), claim(files, "run", Observer()):
        raise KeyboardInterrupt
    with claim(files, "run", Observer()) as lease:
        assert lease.token == 2


def test_a_killed_holder_on_this_host_need_not_be_waited_for(tmp_path):
    (tmp_path / "go").touch()
    line = [sys.executable, "-c", RACE, str(tmp_path), "", "1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "0 1\n"
        files = DiskFiles(tmp_path / "0")
        with pytest.raises(Busy):
            claim(files, "run", Observer())
        holder.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while True:
            try:  # also while its parent has not asked how it ended
                lease = claim(files, "run", Observer())
                break
            except Busy:
                assert time.monotonic() < deadline
        with lease:
            assert lease.token == 2


def test_only_a_process_of_this_kernel_can_be_known_to_be_gone():
    me = this_process()
    assert not is_gone(me)
    assert is_gone({**me, "started": "1"}), "another process has got the number"
    assert is_gone({**me, "pid": 2**22 + 5})
    assert not is_gone({**me, "boot": "another", "pid": 2**22 + 5})
    assert not is_gone(ELSEWHERE)
    assert not is_gone({})
    assert not is_gone({**me, "pid": "1; rm -rf ."})


@pytest.mark.parametrize(
    "data", [b"", b'{"token": 1, "own', b"[]", b'{"owner": 3}', b"\xff\xfe", b'{"owner": {}, "beat": []}']
)
def test_an_attempt_cut_short_is_a_silent_one(files, clock, data):
    mine = observer(clock)
    files.create("0001.json", data)
    with pytest.raises(Busy):
        claim(files, "run", mine)
    clock.now += 61
    with claim(files, "run", mine) as lease:
        assert lease.token == 2


def test_a_claim_on_an_old_listing_is_withdrawn(tmp_path):
    """NFS may show a folder as it was: the number that was free then must not count now."""
    files = DiskFiles(tmp_path)
    held_elsewhere(files, 2)
    listings = [[], ["0001.json", "0002.json"]]
    files.names = lambda: listings.pop(0)  # type: ignore[method-assign]
    with pytest.raises(Busy, match="another process has claimed"):
        claim(files, "run", Observer())
    assert os.listdir(tmp_path) == ["0002.json"]


def test_a_repeated_link_over_nfs_is_known_for_ours(tmp_path, monkeypatch):
    link = os.link

    def twice(source, target):
        link(source, target)
        raise FileExistsError(17, "the reply was lost, and the request repeated")

    monkeypatch.setattr(os, "link", twice)
    assert DiskFiles(tmp_path).create("0001.json", b"mine")


def test_a_repeated_request_to_the_object_store_is_known_for_ours():
    store = ObjectStore()
    pipe_file = store.pipe_file

    def twice(path, value, mode="overwrite"):
        pipe_file(path, value, mode=mode)
        pipe_file(path, value, mode=mode)  # the reply to the first was lost

    store.pipe_file = twice  # type: ignore[method-assign]
    with claim(ObjectFiles(store, "bucket/a"), "run", Observer()) as lease:
        assert lease.token == 1


def test_cancelling_reaches_the_holder_at_its_next_heartbeat(files):
    with claim(files, "run", Observer()) as lease:
        files.create(CANCEL, b"{}")
        lease.beat()
        assert lease.stop == CANCELLED
        lease.request_stop("preempted")
        assert lease.stop == CANCELLED


def test_an_attempt_comes_back_from_its_file():
    attempt = Attempt(3, {"host": "a"}, 5, 30.0, 12.5, "done", {"step": 9})
    assert parse_attempt(3, attempt.to_bytes()) == attempt
    assert set(json.loads(attempt.to_bytes())) == {
        "schema_version",
        "digest",
        *(field.name for field in dataclasses.fields(Attempt)),
    }


def test_the_object_store_is_asked_and_not_its_clients_cache():
    store = ObjectStore()
    ours, theirs = ObjectFiles(store, "bucket/a"), ObjectFiles(store, "bucket/a")
    assert ours.names() == []
    theirs.create("0001.json", b"x")
    assert ours.names() == ["0001.json"]
