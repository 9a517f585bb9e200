"""Worker processes under a test's hand, and what a study's folder must hold in the end."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from process_group import free_port

from analysis.results import results
from dit.design.config import DATASETS, Evaluation, RunConfig, model_config
from dit.store.lease import attempts, run_files
from dit.store.study import RunStore, Study, load_study, save_study

SCRIPT = str(Path(__file__).parent / "crashing_worker.py")


def fake_cells(count, steps=60):
    """Cells that are told apart by their seeds, with a score halfway and one at the end."""
    data = DATASETS["digits"]
    scores = tuple(Evaluation(step, "digits", num_samples=16, sampling_steps=2) for step in (steps // 2, steps))
    model = model_config("adaln", "S", 4, data, ladder="nano")
    return tuple(RunConfig(model, data, steps, 4, seed, evaluations=scores) for seed in range(count))


def make_study(folder, runs):
    """A folder with nothing but the study in it."""
    save_study(folder, Study("mine", "", runs))
    return folder


def line(folder, *options, before=()):
    """The command of a worker on that study."""
    cadence = ["--log-every", "10", "--checkpoint-every", "20"]
    return [sys.executable, SCRIPT, *before, "--study", str(folder), *cadence, *options]


def fake(folder, *options, crash=None, before=(), **named):
    """A fake worker, started."""
    crashing = ["--crash", crash] if crash else []
    command = line(folder, *options, before=["--fake", *crashing, *before])
    named = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **named}
    return subprocess.Popen(command, **named)


def gang(folder, *options, before=()):
    """One worker in two real processes, started."""
    named = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    command = line(folder, "--distributed", "--lease", "30", *options, before=before)
    return [
        subprocess.Popen(command, env={**os.environ, **named, "JAX_PROCESS_ID": str(k)}, stderr=subprocess.DEVNULL)
        for k in range(2)
    ]


class Nursery:
    """Real workers without their imports: see `crashing_worker.py --nursery`. Their output goes to `log`."""

    def __init__(self, log):
        environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=1"}
        command = [sys.executable, "-W", "ignore", SCRIPT, "--nursery"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.log, self.codes = log, {}
        self._started = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            told = json.loads(line)
            if "started" in told:
                self._started.put(told["started"])
            else:
                self.codes[told["ended"]] = told["code"]

    def start(self, folder, *options, crash=None, before=()):
        """A worker's process number."""
        crashing = ["--crash", crash] if crash else []
        arguments = line(folder, *options, before=[*crashing, *before])[2:]
        self.process.stdin.write(json.dumps([str(self.log), *arguments]) + "\n")
        self.process.stdin.flush()
        return self._started.get(timeout=120)

    def wait(self, pid, seconds=1200.0):
        """The worker's exit code."""
        wait_for(lambda: pid in self.codes, seconds)
        return self.codes[pid]

    def close(self):
        """Nobody outlives it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@contextlib.contextmanager
def ended(*processes):
    """These processes do not outlive the block."""
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(condition, seconds=600.0):
    """Poll until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def holdings(folder):
    """Everything that a study's results are made of: the table, each run's rows without their speed, and where runs ended."""
    table = results(folder).drop(columns=["source", "study"], errors="ignore")
    return table.astype(object).where(table.notna(), None).to_dict("records"), *rows_and_ends(
        folder
    )  # NaN equals nothing


def rows_and_ends(folder):
    """The same of a study that declares no scores, and so has no table."""
    runs = load_study(folder).runs
    rows = {run.run: [_plain(row) for row in RunStore(folder, run).metrics()] for run in runs}
    ends = {run.run: (RunStore(folder, run).is_done(), RunStore(folder, run).status()["step"]) for run in runs}
    return rows, ends


def _plain(row):
    return {key: value for key, value in row.items() if key in ("step", "loss", "mse", "vb", "grad_norm")}


def attempts_of(folder, run):
    """Every attempt at a run."""
    return attempts(run_files(RunStore(folder, run).path))
