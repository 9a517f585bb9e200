"""What Ray runs on the hosts of a cluster: nothing but the command of a cell, as a child that does not outlive its task.

A cell on one host is one task. A cell on several is a gang, placed together by Ray's JAX trainer: each host runs the same command, told
by its environment who coordinates and which of how many it is. The trainer only places: JAX starts in the command, and its devices are
free again when that ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit.store.paths import refuse_links
from sweeps.engine import DONE, SOME_FAILED, STOPPED

GRACE_S = 60.0
"""Seconds that a worker has to save its cell once its task is cancelled."""
RAY_ACCELERATORS = {
    "v3": "TPU-V3",
    "v4": "TPU-V4",
    "v5e": "TPU-V5LITEPOD",
    "v5p": "TPU-V5P",
    "v6e": "TPU-V6E",
    "a100": "A100",
    "h100": "H100",
    "h200": "H200",
}
"""Ray's names of accelerators."""
NOT_STARTED = -1000
"""What `run_gang` returns for hosts that did not come together in time; no exit code and no signal's number."""


def run_command(
    command: Sequence[str], log: str, environment: Mapping[str, str] | None = None, last_signal: int = signal.SIGTERM
) -> int:
    """Run a cell's command to its end, its output added to the file `log`; its exit code.

    If this process dies, however it does, the command gets `last_signal`.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def tie() -> None:
        if libc is not None:
            libc.prctl(1, last_signal)  # PR_SET_PDEATHSIG

    refuse_links(Path(log))
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
            preexec_fn=tie,
        )
    try:
        return process.wait()
    except BaseException:  # the task is cancelled
        process.terminate()
        try:
            process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


class Starts:
    """An actor that knows which gangs have all their hosts."""

    def __init__(self) -> None:
        self._cells: set[str] = set()

    def note(self, cell: str) -> None:
        """The cell's command starts on its hosts."""
        self._cells.add(cell)

    def take(self) -> set[str]:
        """The cells noted since the last call."""
        cells, self._cells = self._cells, set()
        return cells


def run_gang(
    cell: str, command: Sequence[str], log: str, asked: Mapping[str, Any], start_within_s: float, starts: Any
) -> int:
    """Run a cell's command on all of its hosts at once.

    `asked` holds the fields of `sweeps.engine.Resources`. Returns 0 if the command ended by itself, `NOT_STARTED` if its hosts were not
    had in time.

    Raises:
        ray.train.TrainingFailedError: if a host was lost, or the command died on one.
    """
    os.environ |= {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(start_within_s),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.jax import JaxConfig, JaxTrainer

    needs: dict[str, float] = {"CPU": asked["cpus_per_host"]}
    if asked["memory_gb"]:
        needs["memory"] = asked["memory_gb"] * 1e9
    if asked["platform"] != "cpu":
        needs[asked["platform"].upper()] = asked["chips_per_host"]
    trainer = JaxTrainer(
        _rank,
        train_loop_config={"cell": cell, "command": list(command), "log": log, "starts": starts},
        jax_config=JaxConfig(),  # JAX starts in the command and not in the trainer's process
        scaling_config=ScalingConfig(
            num_workers=asked["hosts"],
            use_gpu=asked["platform"] == "gpu",
            use_tpu=asked["platform"] == "tpu",
            topology=asked["topology"] or None if asked["platform"] == "tpu" else None,
            accelerator_type=RAY_ACCELERATORS.get(asked["accelerator"]),
            resources_per_worker=needs,
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(
            name=cell,
            storage_path=str(Path(log).parent / "ray"),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    try:
        trainer.fit()
    except ControllerError as error:
        if type(error.controller_failure).__name__.startswith("WorkerGroupStartup"):
            return NOT_STARTED
        raise
    return DONE


def _rank(config: dict[str, Any]) -> None:
    """One host of a gang: agree on a coordinator, then run the command.

    Raises:
        RuntimeError: if the command died, upon which the trainer ends it on the other hosts.
    """
    import ray
    from ray import train
    from ray.train.collective import broadcast_from_rank_zero

    context = train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    own = None
    if rank == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            own = f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
        ray.get(config["starts"].note.remote(config["cell"]))
    coordinator = broadcast_from_rank_zero(own)
    environment = {
        "JAX_COORDINATOR_ADDRESS": str(coordinator),
        "JAX_NUM_PROCESSES": str(size),
        "JAX_PROCESS_ID": str(rank),
    }
    log = config["log"] if rank == 0 else config["log"].removesuffix(".log") + f"-{rank}.log"
    code = run_command(config["command"], log, environment, signal.SIGKILL)
    if code not in (DONE, SOME_FAILED, STOPPED):
        raise RuntimeError(f"the command of {config['cell']} ended on host {rank} of {size} with exit code {code}")
