"""How a sweep drives an engine that tells nothing: it follows the ledger, and does not start a command that never works for ever."""

import argparse

import pytest

from dit.design.config import DATASETS, RunConfig, model_config
from dit.errors import UserError
from dit.store.study import DONE, RunStore, Study
from sweeps import engines, sweep
from sweeps.engine import GONE, RUNNING, Resources
from sweeps.ledger import Ledger

DATA = DATASETS["digits"]
RUNS = tuple(RunConfig(model_config("adaln", "S", 8, DATA, ladder="nano"), DATA, 4, 4, seed) for seed in (0, 1))


class Engine:
    """Submits to nobody; each look at it makes `happen` happen."""

    name, reports = "pretended", False

    def __init__(self, state, happen=lambda: None, detached=True):
        self.state, self.happen, self.detached = state, happen, detached
        self.submitted, self.closed = [], False

    def submit(self, cells):
        """Remember them."""
        self.submitted.append([task.cell for task in cells])

    def poll(self, timeout_s=1.0):
        """All in the one state."""
        self.happen()
        return dict.fromkeys((cell for cells in self.submitted for cell in cells), self.state)

    def detail(self, cell):
        """Always the same."""
        return "exit code 127"

    def close(self):
        """Remember it."""
        self.closed = True


@pytest.fixture
def driven(tmp_path, monkeypatch):
    """Drive both cells with an engine; what was heard."""
    monkeypatch.setattr(sweep, "FOLLOW_S", 0.0)
    heard = []

    def drive(engine):
        study = Study("two", "", RUNS)
        sweep.declare(study, tmp_path, sweep.RunArguments())
        driver = sweep._Drive(Ledger(tmp_path, study), engine, RUNS, lambda run: Resources(), heard.append)
        assert driver.to_the_end() is False
        return [event for event in heard if event["event"] != "tick"]

    return drive


def ending(folder):
    """Each call takes one cell a stage further: claimed, a step told, done."""
    ledger, held, stages = Ledger(folder, Study("two", "", RUNS)), [], []

    def happen():
        if len(stages) == 3 * len(RUNS):
            return
        stages.append(None)
        run = RUNS[(len(stages) - 1) // 3]
        if len(stages) % 3 == 1:
            held.append(ledger.claim(run))
        elif len(stages) % 3 == 2:
            held[-1].note(step=2, loss=0.5)
            held[-1].beat()
        else:
            RunStore(folder, run).set_status(DONE, step=4, attempt=1)
            held[-1].end(DONE)
            held[-1].close()

    return happen


def test_a_detached_engines_cells_are_followed_in_the_ledger(driven, tmp_path):
    engine = Engine(RUNNING, ending(tmp_path))
    heard = driven(engine)
    assert [(event["event"], event["run"]) for event in heard] == [
        (kind, run.run) for run in RUNS for kind in ("started", "step", "finished")
    ]
    assert (heard[1]["step"], heard[1]["loss"]) == (2, 0.5)
    assert engine.submitted == [[run.run for run in RUNS]]  # nothing was gone, nothing submitted again
    assert engine.closed


def test_a_command_that_never_takes_its_cell_is_given_up(driven):
    engine = Engine(GONE)
    with pytest.raises(UserError, match=r"ended 4 times before a worker took the cell \(exit code 127\): see .*logs"):
        driven(engine)
    assert [len(cells) for cells in engine.submitted] == [2] * 5
    assert engine.closed


def test_every_engine_declares_its_options_without_its_library():
    parser = argparse.ArgumentParser()
    engines.declare(parser)
    args = parser.parse_args(["--engine", "slurm", "--nodes", "2", "--partition", "gpu", "--address", "x:1"])
    assert (args.hosts, args.partition, args.address) == (2, "gpu", "x:1")
