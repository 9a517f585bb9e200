"""One worker over several hosts (a TPU slice, a Slurm step, a gang of Ray's): process 0 claims cells and tells the others which to run.

The hosts find each other through `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` where those are set, or else as
`dit.distributed` finds them.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from dit.errors import UserError


class Gang(Protocol):
    """What a worker asks of its processes (`dit.processes.Processes`)."""

    count: int

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        ...

    def tell(self, name: str, value: Any, patiently: bool = False) -> Any:
        """Process 0's value, in every process; `patiently`: however long it takes to come, while process 0 lives."""
        ...


class Alone:
    """A worker of one process."""

    count, leads = 1, True

    def tell(self, name: str, value: Any, patiently: bool = False) -> Any:
        """The value."""
        return value


def join() -> Gang:
    """Start JAX together with the other hosts; imports JAX.

    Raises:
        UserError: if there are none, they do not meet in time, or a variable that names them is no number.
    """
    from dit.distributed import Group, start
    from dit.processes import Processes

    group = None
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        group = Group("JAX_* variables", address, _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID"))
    if start(group) == 1 and group is None:
        raise UserError(
            "--distributed: no other hosts are to be found: set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID, or start the worker within a Slurm step or on a TPU slice"
        )
    return Processes()


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise UserError(f"{name} is {value!r}: expected a number, as JAX_COORDINATOR_ADDRESS is set")
    return int(value)
