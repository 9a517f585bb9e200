"""Told to go: the run saves at the next step that all its processes agree on, and its worker exits with code 75 (EX_TEMPFAIL).

A lone process hears it through its lease, which `dit worker` tells of SIGTERM and SIGINT; where `execute` is called without a worker, it
listens for them itself. With several processes any of them may get the notice (SIGTERM on TPU VMs, Slurm and Kubernetes alike), and JAX's
coordination service finds the step for all.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from jax.experimental.multihost_utils import reached_preemption_sync_point

from dit.hosts.processes import Processes
from dit.store.lease import PREEMPTED, Lease

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """Answers, at every step, whether to save and end there. Signals that come again change nothing.

    Args:
        lease: held by process 0; None in the others.
        listens: whether to take the signals from whoever has them, while this is entered.
    """

    def __init__(self, processes: Processes, lease: Lease | None, listens: bool):
        self._processes, self._lease = processes, lease
        self._listens = listens and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}
        self._asked, self._passed_on, self._reached = 0, False, False

    def __enter__(self) -> Preemption:
        if self._listens:
            # With several processes SIGTERM is JAX's, whose handler is not Python's to replace.
            chosen = SIGNALS if self._processes.count == 1 else (signal.SIGINT,)
            self._before = {number: signal.signal(number, self._hear) for number in chosen}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, _number: int, _frame: Any) -> None:
        if self._processes.count > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._lease is not None:
            self._lease.request_stop(PREEMPTED)

    def reached(self) -> bool:
        """Whether this is the place to save and end. Every process asks equally often; cheap enough for every step.

        Raises:
            LeaseLost: if the lease says so: there is nothing to save any more.
        """
        stop = self._lease.stop if self._lease is not None else ""
        if self._processes.count == 1:
            self._reached = bool(stop)
        else:
            if stop and not self._passed_on:  # asked of process 0 alone: all others are to hear it
                self._passed_on = True
                os.kill(os.getpid(), signal.SIGTERM)
            self._asked += 1
            self._reached = self._reached or reached_preemption_sync_point(self._asked)
        if self._reached and self._lease is not None:
            self._lease.request_stop(PREEMPTED)
            self._lease.check()
        return self._reached
