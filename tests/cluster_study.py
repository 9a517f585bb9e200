"""A study of three cells for real schedulers, and its table by the local engine to compare with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from analysis.results import results
from dit.store.study import RunStore, load_study

STUDY = '''"""Cells of some hundred steps."""
from dit.design.config import DATASETS, Evaluation, OptimConfig, RunConfig, model_config
D = DATASETS["digits"]
SCORES = tuple(Evaluation(step, "digits", num_samples=16, sampling_steps=2) for step in (200, 400))
def runs():
    model = model_config("adaln", "S", 4, D, ladder="nano")
    optim = OptimConfig(learning_rate=1e-3)
    return [RunConfig(model, D, {steps}, 4, seed, optim=optim, evaluations=SCORES) for seed in range({cells})]
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


def by_the_local_engine(folder: Path, cells: int = 3, steps: int = 400) -> tuple[Path, Path]:
    """The study's file and a folder that the local engine has brought to its end."""
    study = folder / f"study_{cells}_{steps}.py"
    study.write_text(STUDY.format(cells=cells, steps=steps))
    out = folder / "local"
    subprocess.run(command(study, out, "--workers", "2"), check=True, env=environment(), timeout=300)
    return study, out


def table(out: Path):
    """The results of a sweep, without what tells of the machine and not of the run."""
    return results(out).sort_values(["run", "step"]).reset_index(drop=True)


def assert_is_near(out, local, record):
    """The cell's rows are the local engine's up to what two devices' sums round differently, and none is there twice."""
    near, exact = table(out), table(local)
    near, exact = (rows[rows["run"] == record.run.run].reset_index(drop=True) for rows in (near, exact))
    assert len(near) == len(record.run.evaluations)
    np.testing.assert_allclose(near["fd_digits"], exact["fd_digits"], rtol=2e-3)
    assert [row["step"] for row in record.metrics()] == list(range(50, record.run.steps + 1, 50))


def records(out: Path) -> list[RunStore]:
    """The study's runs in its folder."""
    return [RunStore(out, run) for run in load_study(out).runs]


@contextlib.contextmanager
def running(line: list[str], **named) -> Iterator[subprocess.Popen]:
    """A process, which is ended and waited for with the context, however that ends."""
    with subprocess.Popen(line, **named) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(
    condition: Callable[[], bool],
    seconds: float = 120.0,
    process: subprocess.Popen | None = None,
    about: Callable[[], str] = lambda: "",
) -> None:
    """Wait until it holds; once `process`, by whose doing it should, has ended, no longer. A failure shows what `about` tells."""
    deadline = time.monotonic() + seconds
    while not condition():
        ended = process is not None and process.poll() is not None
        if ended and not condition():
            raise AssertionError(f"waited for what ended with exit code {process.returncode}\n{about()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {seconds:g} s\n{about()}")
        time.sleep(0.1)


def ends_of(paths: Iterable[Path], lines: int = 15) -> str:
    """The last lines of these files, the one last written to at the end."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            text = path.read_text(errors="replace").rstrip()
            if text:
                found.append((path.stat().st_mtime, f"--- {path}\n" + "\n".join(text.splitlines()[-lines:])))
    return "\n".join(text for _, text in sorted(found))


def story(out: Path) -> str:
    """What a failed wait should show of a study's folder: each cell's status and attempts, and the ends of the logs."""
    states = [*out.glob("runs/*/status.json"), *out.glob("runs/*/attempts/*.json")]
    load = f"load {os.getloadavg()}, {os.cpu_count()} processors"
    return "\n".join(["", load, ends_of(states), ends_of([*out.glob("*.log"), *out.glob("logs/*.log")]), ""])
