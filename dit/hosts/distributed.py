"""Several processes as one run: who they are, from flags or from the environment of what started them, and JAX's runtime among them.

In order: flags; `DIT_COORDINATOR`, `DIT_NUM_PROCESSES` and `DIT_PROCESS_ID`, or the same with JAX_COORDINATOR_ADDRESS, for whatever starts
processes by hand; Ray Train, whose JAX trainer has joined them before this code runs; Slurm's job step; and a TPU pod's own metadata, which
JAX reads. A process without any of them is alone.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dit.errors import UserError
from dit.hosts.terminal import Screened

PORT = 12321
VARIABLES = (
    ("DIT_COORDINATOR", "DIT_NUM_PROCESSES", "DIT_PROCESS_ID"),
    ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
)
TIMEOUT_S = 600
"""A preempted gang does not come back all at once: JAX's default of 300 s has ended runs that were about to start."""

_ALONE = (
    "--distributed: no other processes are to be found: set DIT_COORDINATOR (HOST:PORT of process 0), DIT_NUM_PROCESSES and "
    "DIT_PROCESS_ID in each, or start them within a Slurm step (srun) or on a TPU slice"
)


@dataclass(frozen=True)
class Group:
    """The processes of one run. Of a TPU pod JAX finds out the rest: the numbers are then `None`."""

    source: str
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def detect(environment: Mapping[str, str], flags: Group | None = None) -> Group | None:
    """Which processes to join; `None` for a process alone.

    Raises:
        UserError: for half a description, or numbers that do not fit.
    """
    if flags is not None:
        return _checked(flags)
    for names in VARIABLES:
        given = [name for name in names if environment.get(name)]
        if given:
            if len(given) < len(names):
                raise UserError(
                    f"{' and '.join(given)} without {' and '.join(sorted(set(names) - set(given)))}: set all three or none"
                )
            numbers = (_number(environment, name) for name in names[1:])
            return _checked(Group(f"{names[0][:4]}* variables", environment[names[0]], *numbers))
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    if int(tasks) > 1 and "SLURM_PROCID" in environment:
        host = _first_host(environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "")))
        port = PORT + int(environment.get("SLURM_JOB_ID", "0")) % 4096  # two jobs may share a node
        return _checked(Group("Slurm", f"{host}:{port}", int(tasks), int(environment["SLURM_PROCID"])))
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return Group("TPU pod")
    return None


def start(group: Group | None = None) -> int:
    """Join the processes of this run, if it has several, before any device is touched; returns how many there are.

    Raises:
        UserError: if they do not come together in time.
    """
    import jax

    if jax.distributed.is_initialized():  # by Ray Train's JAX trainer, or by a test
        return jax.process_count()
    group = detect(os.environ, group)
    if group is None:
        return 1
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            group.coordinator, group.num_processes, group.process_id, initialization_timeout=TIMEOUT_S
        )
    except (RuntimeError, ValueError) as error:
        where = f" at {group.coordinator}" if group.coordinator else ""
        reason = " ".join(str(error).split())
        raise UserError(f"the processes of this run ({group.source}) did not meet{where}: {reason}") from error
    return jax.process_count()


def join() -> int:
    """As `start`, for a command that was told to share its work; returns how many processes there are.

    Raises:
        UserError: if this process is alone, or they do not come together in time.
    """
    count = start()
    if count == 1 and detect(os.environ) is None:
        raise UserError(_ALONE)
    return count


def part(environment: Mapping[str, str]) -> tuple[int, int]:
    """This process's number and how many there are, for work that needs no connection between them.

    Raises:
        UserError: if this process is alone, or its number is not in the environment.
    """
    group = detect(environment)
    if group is None:
        raise UserError(_ALONE)
    if group.num_processes is not None and group.process_id is not None:
        return group.process_id, group.num_processes
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if len(hosts) < 2 or "MEGASCALE_COORDINATOR_ADDRESS" in environment or not environment.get("TPU_WORKER_ID"):
        raise UserError(
            "this TPU pod does not say which of its hosts this is: give --process-index and --process-count"
        )
    return _number(environment, "TPU_WORKER_ID"), len(hosts)


def share(asked: bool) -> None:
    """Join the others if the command was asked to. Standard output stays Python's own: Gloo greets there, which would end up in a row.

    Raises:
        UserError: as `join`.
    """
    if asked and join() > 1:
        sys.stdout = Screened(os.fdopen(os.dup(1), "w", buffering=1))  # type: ignore[assignment]  # as a file is used
        os.dup2(2, 1)


def declare(parser: argparse.ArgumentParser) -> None:
    """The option of a verb that shares its work."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="share the work with the other processes of this Slurm step, TPU slice or job: all start the same command",
    )


def _checked(group: Group) -> Group:
    if None in (group.coordinator, group.num_processes, group.process_id):
        raise UserError(
            "a coordinator's address, the number of processes and this one's number go together: give all three"
        )
    coordinator, count, index = str(group.coordinator), int(group.num_processes or 0), int(group.process_id or 0)
    if not re.fullmatch(r".+:[0-9]+", coordinator):
        raise UserError(f"coordinator '{coordinator}': expected HOST:PORT")
    if not 0 <= index < count:
        raise UserError(f"process {index} of {count}: expected a number from 0 to {count - 1}")
    return group


def _number(environment: Mapping[str, str], name: str) -> int:
    if not re.fullmatch("[0-9]+", environment[name]):
        raise UserError(f"{name} is '{environment[name]}': expected a whole number")
    return int(environment[name])


def _first_host(nodes: str) -> str:
    """First of Slurm's compressed list of nodes, such as gpu[003-006,9],cpu1."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodes)
    if not match:
        raise UserError(f"Slurm's node list '{nodes}' names no host: give a coordinator's address")
    return match[1] + (match[2] or "")
