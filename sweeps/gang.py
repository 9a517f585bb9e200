"""One worker over several hosts (a TPU slice, a Slurm step, a gang of Ray's): process 0 claims cells and tells the others which to run.

The hosts find each other through `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` where those are set, or else as JAX
itself finds them on TPU VMs, under Slurm and under Open MPI.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from dit.errors import UserError

START_WITHIN_S = 600
"""Seconds that the hosts may take to find each other: after a preemption they come back one by one."""


class Gang(Protocol):
    """What a worker asks of its processes (`dit.processes.Processes`)."""

    count: int

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        ...

    def tell(self, name: str, value: Any) -> Any:
        """Process 0's value, in every process."""
        ...


class Alone:
    """A worker of one process."""

    count, leads = 1, True

    def tell(self, name: str, value: Any) -> Any:
        """The value."""
        return value


def join() -> Gang:
    """Start JAX together with the other hosts; imports JAX.

    Raises:
        UserError: if they are not to be found, or a variable that names them is no number.
    """
    import jax

    from dit.processes import Processes

    named = "JAX_COORDINATOR_ADDRESS" in os.environ
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if named:
            address = os.environ["JAX_COORDINATOR_ADDRESS"]
            count, index = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
            jax.distributed.initialize(address, count, index, initialization_timeout=START_WITHIN_S)
        else:
            jax.distributed.initialize(initialization_timeout=START_WITHIN_S)
    except (ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise UserError(
            f"--distributed: the other hosts are not to be found ({message}): set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start the worker where JAX finds them by itself"
        ) from error
    return Processes()


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise UserError(f"{name} is {value!r}: expected a number, as JAX_COORDINATOR_ADDRESS is set")
    return int(value)
