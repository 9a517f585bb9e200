"""The copy in Weights & Biases: nothing when off, every row when on, and no failure of it ever reaches the run."""

import sys
from types import SimpleNamespace

import pytest
from synthetic_study import cells

from dit.store.mirror import Mirror

RUN = cells(blocks=("adaln",), sizes=("S",), patches=(4,))[0]


class FakeRun:
    """Notes what it is asked, and fails at the calls it is told to."""

    def __init__(self, failing=()):
        self.failing, self.calls = failing, []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, *args))
            if name in self.failing:
                raise ConnectionError(f"{name} is\ndown")

        return call


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of wandb: `wandb.run` is what it gives, `wandb.started` what it was started with."""
    module = SimpleNamespace(run=FakeRun(), started=[])

    def init(**settings):
        module.started.append(settings)
        if "init" in module.run.failing:
            raise ConnectionError("init is down")
        return module.run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def drive(mode, folder):
    warnings = []
    mirror = Mirror(mode, RUN, "mine", folder, warnings.append)
    mirror.log({"step": 1, "loss": 0.5, "images_per_s": None})
    mirror.log({"step": 2, "loss": 0.4})
    mirror.close()
    return warnings


def test_off_does_nothing_and_does_not_import_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert drive("off", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_rows_arrive_without_their_gaps_under_the_runs_own_hash(tmp_path, wandb):
    assert drive("offline", tmp_path) == []
    settings = wandb.started[0]
    assert {name: settings[name] for name in ("mode", "group", "name", "id", "dir")} == {
        "mode": "offline",
        "group": "mine",
        "name": RUN.run,
        "id": RUN.hash,
        "dir": str(tmp_path),
    }
    assert settings["config"]["model"]["block"] == "adaln"
    calls = [call for call in wandb.run.calls if call[0] != "define_metric"]
    assert calls == [("log", {"step": 1, "loss": 0.5}), ("log", {"step": 2, "loss": 0.4}), ("finish",)]


@pytest.mark.parametrize("failing", ["init", "define_metric", "log", "finish"])
def test_a_failure_is_told_once_and_stops_the_mirror_only(tmp_path, wandb, failing):
    wandb.run = FakeRun(failing=(failing,))
    (warning,) = drive("online", tmp_path)
    assert warning.startswith("wandb mirror stopped (ConnectionError: ")
    assert "the run goes on without it" in warning
    assert len([call for call in wandb.run.calls if call[0] == failing]) <= 1


def test_a_machine_without_wandb_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (warning,) = drive("offline", tmp_path)
    assert "ModuleNotFoundError" in warning
