"""What has ended stays ended, what has gone is not made again, and a cell is the same whoever works on it."""

import errno
import os
import time

import pytest
from worker_processes import ended, fake, fake_cells, make_study, wait_for

from dit.cli import main
from dit.errors import UserError
from dit.runs.run import reason_of
from dit.store.lease import Attempt
from dit.store.study import RunStore, storage_errors
from sweeps import devices, worker
from sweeps.ledger import Ledger

RUNS = fake_cells(2)


@pytest.fixture
def finished(tmp_path):
    """A study of one cell, done."""
    folder = make_study(tmp_path / "study", RUNS[:1])
    assert fake(folder).wait(timeout=60) == 0
    return folder


def unended():
    return Attempt(1, {"host": "h", "boot": "another", "pid": 3, "started": "1"}, beat=4, lease_s=3.0).to_bytes()


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 300, unended()])
def test_a_finished_state_is_final_whatever_the_attempts_say(finished, content):
    place = RunStore(finished, RUNS[0]).path / "attempts" / "0001.json"
    place.write_bytes(content)
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    (cell,) = Ledger(finished).cells()
    assert cell.state == "done"
    start = time.monotonic()
    for options in ((), ("--cell", RUNS[0].run), ("--wait",)):
        assert fake(finished, "--lease", "60", *options).wait(timeout=30) == 0
    assert time.monotonic() - start < 30
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_folder_that_vanishes_is_not_made_again(tmp_path):
    folder = make_study(tmp_path / "study", RUNS)
    with ended(fake(folder, "--lease", "2")) as (process,):
        wait_for(lambda: any(folder.glob("runs/*/metrics/*.jsonl")), 60)
        os.rename(folder, tmp_path / "elsewhere")
        assert process.wait(timeout=60) == 2
    assert not folder.exists()
    with pytest.raises(UserError, match=r"has no study\.json any more"):
        Ledger(folder, make_and_load(tmp_path)).claim(RUNS[0])


def make_and_load(tmp_path):
    from dit.store.study import load_study

    return load_study(tmp_path / "elsewhere")


def test_a_study_that_vanishes_in_mid_run_ends_the_sweep_with_an_error(tmp_path, capsys, monkeypatch):
    module = tmp_path / "mine.py"
    module.write_text('"""A cell."""\nfrom worker_processes import fake_cells\ndef runs():\n    return fake_cells(1)\n')
    folder = tmp_path / "out"

    class Thief:
        """An engine under which the folder goes away."""

        name, detached, reports = "local", False, True

        def submit(self, tasks):
            os.rename(folder, tmp_path / "elsewhere")

        def poll(self):
            return {}

        def close(self):
            pass

    monkeypatch.setattr("sweeps.engines.make", lambda *_: Thief())
    assert main(["sweep", str(module), "--out", str(folder)]) == 2
    assert f"{folder} has no study.json any more" in capsys.readouterr().err
    assert not folder.exists()


def test_a_worker_by_itself_compiles_as_a_sweeps_workers_do(monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    flags = []
    for cpus in ({0}, set()):
        monkeypatch.setenv("XLA_FLAGS", "--mine")
        worker.use_processors(cpus)
        flags.append(os.environ["XLA_FLAGS"])
    assert flags[0] == flags[1] != "--mine"
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    monkeypatch.setattr(worker, "has_accelerators", lambda: True)
    worker.use_processors(set())
    assert os.environ["XLA_FLAGS"] == "--mine"
    assert not devices.has_accelerators()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EMFILE, "raise the limit of open files (ulimit -n)"),
        (errno.ENFILE, "raise the limit of open files (ulimit -n)"),
        (errno.ENOSPC, "make room"),
        (errno.EROFS, "make it writable"),
    ],
)
def test_what_storage_refuses_is_answered_with_what_helps(tmp_path, number, advice):
    with pytest.raises(UserError) as refused, storage_errors(tmp_path):
        raise OSError(number, os.strerror(number), "a.json")
    assert f"{advice} and run again" in str(refused.value)


def test_a_reason_is_a_line_of_three_hundred_letters_at_most():
    assert len(reason_of(ValueError("x\n" * 10_000))) == 300
