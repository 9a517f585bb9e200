"""A study of three cells for real schedulers, and its table by the local engine to compare with."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from analysis.results import results
from dit.store import RunStore, load_study

STUDY = '''"""Three cells of a few hundred steps."""
from dit.config import DATASETS, Evaluation, OptimConfig, RunConfig, model_config
D = DATASETS["digits"]
SCORES = tuple(Evaluation(step, "digits", num_samples=16, sampling_steps=2) for step in (200, 400))
def runs():
    model = model_config("adaln", "S", 4, D, ladder="nano")
    optim = OptimConfig(learning_rate=1e-3)
    return [RunConfig(model, D, 400, 4, seed, optim=optim, evaluations=SCORES) for seed in (0, 1, 2)]
'''
OPTIONS = ("--log-every", "50", "--checkpoint-every", "50")


def environment(**more: str) -> dict[str, str]:
    """The environment of every worker of a comparison: XLA compiles alike, whichever engine starts the process."""
    flags = ["--xla_backend_optimization_level=1", "--xla_cpu_parallel_codegen_split_count=1"]
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu", **more}


def command(study: Path, out: Path, *options: str) -> list[str]:
    """A `dit sweep` of the study into `out`."""
    return [sys.executable, "-m", "dit", "sweep", str(study), "--out", str(out), *OPTIONS, *options]


def by_the_local_engine(folder: Path) -> tuple[Path, Path]:
    """The study's file and a folder that the local engine has brought to its end."""
    study = folder / "three.py"
    study.write_text(STUDY)
    out = folder / "local"
    subprocess.run(command(study, out, "--workers", "2"), check=True, env=environment(), timeout=300)
    return study, out


def table(out: Path):
    """The results of a sweep, without what tells of the machine and not of the run."""
    return results(out).sort_values(["run", "step"]).reset_index(drop=True)


def records(out: Path) -> list[RunStore]:
    """The study's runs in its folder."""
    return [RunStore(out, run) for run in load_study(out).runs]


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
