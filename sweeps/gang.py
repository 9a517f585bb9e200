"""One worker over several hosts (a TPU slice, a Slurm step, a gang of Ray's): process 0 claims cells and tells the others which to run.

The hosts find each other as `dit.hosts.distributed` says.
"""

from __future__ import annotations

from typing import Any, Protocol


class Gang(Protocol):
    """What a worker asks of its processes (`dit.hosts.processes.Processes`)."""

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
    from dit.hosts import distributed
    from dit.hosts.processes import Processes

    distributed.join()
    return Processes()
